#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "nibble/data/row.h"
#include "nibble/text/chat_template.h"

namespace nibble::data {

// Where messages keep their reasoning.
inline constexpr const char* reasoning_keys[] = {"reasoning_content", "reasoning", "thinking"};

// A part of a message that the template may print.
enum class Field { content, reasoning, calls };

// The bytes of a rendered chat that depend on one field of one message.
struct Region {
  std::size_t begin = 0;
  std::size_t end = 0;
  // The template prints the field here and nowhere else, whatever it holds: all around stays the same.
  bool exact = false;
};

// Finds out where a template prints what, by rendering the chat again with a field replaced by markers and comparing:
// no knowledge of the template is needed.
class ChatProbe {
 public:
  ChatProbe(const text::ChatTemplate& chat_template, const Chat& chat, const OrderedJson& variables)
      : template_(chat_template), chat_(chat), variables_(variables) {}

  static bool has_field(const OrderedJson& message, Field field);

  // The chat's first `count` messages. Throws DataError where the template refuses them.
  std::string render(std::size_t count, bool add_generation_prompt = false) const;
  text::RenderedChat render_all() const;
  // The field's region in `full`, which is render(count); nothing where the template does not print it.
  std::optional<Region> find(std::string_view full, std::size_t count, std::size_t message, Field field) const;
  // Where the text that the model is given before it answers with `message` ends in `full`; nothing before `from` and
  // behind `until` counts. Nothing where that cannot be told.
  std::optional<std::size_t> prompt_end(std::string_view full, std::size_t message, std::size_t from,
                                        std::size_t until) const;

 private:
  text::ChatRequest request(std::size_t count) const;

  const text::ChatTemplate& template_;
  const Chat& chat_;
  const OrderedJson& variables_;
};

}  // namespace nibble::data
