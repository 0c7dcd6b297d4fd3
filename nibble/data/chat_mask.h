#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "nibble/data/chat_probe.h"
#include "nibble/data/row.h"
#include "nibble/data/think.h"
#include "nibble/text/tokenizer.h"

namespace nibble::data {

// Which tokens the loss counts: every assistant turn, the last one, or all.
enum class TrainOn { assistant, last, all };

std::string_view name_of(TrainOn train_on);
TrainOn train_on_of(std::string_view name);  // UsageError listing the names

struct MaskedChat {
  std::string text;
  text::Encoding encoding;               // of the text, with offsets
  std::vector<text::ByteSpan> trained;   // ordered, apart from each other
};

// Renders a chat and finds what of it is trained: of each assistant turn what the model has to write - content,
// reasoning and calls - and the token that ends the turn. The template's generation marks decide where it has them;
// otherwise the turns are found by probing (ChatProbe). What the template itself puts around a turn's content, such as
// an empty <think> block, is not trained. A message's own flag (Chat::counted) decides before TrainOn, whatever its role. Throws DataError where a turn cannot be told apart.
class ChatMask {
 public:
  // Both must outlive it. Throws UsageError where thoughts are to be treated otherwise than by a template that knows none.
  ChatMask(const text::Tokenizer& tokenizer, const text::ChatTemplate& chat_template, OrderedJson variables,
           Think think = Think::stock);

  // A thought that the row has and that is kept is trained with its turn, and so is an empty block that the row has itself.
  MaskedChat apply(const Chat& chat, TrainOn train_on) const;
  // What the model is given before it answers the chat.
  std::string prompt(const Chat& chat) const;

 private:
  const text::Tokenizer& tokenizer_;
  const text::ChatTemplate& template_;
  OrderedJson variables_;
  Think think_;
  ThinkFormat format_ = {};
};

}  // namespace nibble::data
