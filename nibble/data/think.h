#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/data/row.h"
#include "nibble/text/chat_template.h"

namespace nibble::data {

// What becomes of the thoughts of assistant turns, <think> blocks in their content or reasoning beside it.
enum class Think {
  stock,  // what the template makes of them; Qwen3's drops those before the last question
  keep,   // each turn has the thoughts that its row gives it
  strip,  // none has any, nor a block
  empty,  // each has an empty block, as the model is given one where it is not to think
};

std::string_view name_of(Think think);
Think think_of(std::string_view name);  // UsageError listing the names

// How a template writes thoughts.
struct ThinkFormat {
  std::string open = "<think>\n";
  std::string close = "\n</think>\n\n";
  std::string empty;         // the block that stands for no thought
  bool prompt_opens = false;  // the text that the model is given before it answers ends with `open`
};

// Finds it out by rendering. Throws UsageError where the template treats thoughts as any other text.
ThinkFormat think_format(const text::ChatTemplate& chat_template, const OrderedJson& variables);

// A chat whose assistant turns have lost their thoughts, and these by message; nothing where there was none.
struct SplitChat {
  Chat chat;
  std::vector<std::optional<std::string>> thoughts;
};
SplitChat split_thoughts(const Chat& chat);

// Where an empty block stands that touches `at`, before or behind it, with the white space behind the block; else at, at.
struct BlockPlace {
  std::size_t begin = 0, end = 0;
};
BlockPlace empty_block_at(std::string_view text, std::size_t at);

}  // namespace nibble::data
