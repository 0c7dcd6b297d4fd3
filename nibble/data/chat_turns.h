#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/data/chat_probe.h"
#include "nibble/text/tokenizer.h"

namespace nibble::data {

// The turns of one chat in what its template prints, found by probing. What it is made of must outlive it.
class ChatTurns {
 public:
  // `full` is the whole chat, rendered.
  ChatTurns(const ChatProbe& probe, const Chat& chat, const text::Tokenizer& tokenizer, std::string_view full)
      : probe_(probe), chat_(chat), tokenizer_(tokenizer), full_(full) {}

  // The part of a message that whoever has its role writes, with the mark that ends the turn; nothing where the template does
  // not print it. Throws DataError where it cannot be told.
  std::optional<text::ByteSpan> span(std::size_t message);
  // Where that part begins.
  std::optional<std::size_t> begin(std::size_t message) const;

 private:
  // What a turn prints, before its end is looked for.
  struct Turn {
    std::size_t begin = 0;
    std::size_t end = 0;
    bool exact = false;
    bool calls = false;
  };

  std::optional<Turn> find_turn(std::size_t message) const;
  std::size_t begin_after_prompt(std::size_t message, const Turn& turn) const;
  std::size_t end_of_previous(std::size_t message) const;
  std::size_t begin_of_next(std::size_t message) const;
  std::optional<Region> region_of(std::string_view text, std::size_t count, std::size_t message) const;
  std::string find_end_mark() const;
  std::size_t end_of(const Turn& turn, std::size_t message) const;

  const ChatProbe& probe_;
  const Chat& chat_;
  const text::Tokenizer& tokenizer_;
  std::string_view full_;
  std::optional<std::string> end_mark_;  // found when it is first needed
};

}  // namespace nibble::data
