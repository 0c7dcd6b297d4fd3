#pragma once

#include "nibble/data/batch.h"
#include "nibble/data/chat_mask.h"
#include "nibble/data/row.h"

namespace nibble::data {

// Rows to tokens with the marks of what is trained. May be used by several threads.
class RowEncoder {
 public:
  // `chat_template` may be null: then rows of messages are refused. Both must outlive the encoder. `variables` go to
  // the template with each chat. Chats and labelled inputs without a system message of their own begin with `system`
  // where it is not empty. Throws UsageError where the template does not know the thoughts that `think` is about.
  RowEncoder(const text::Tokenizer& tokenizer, const text::ChatTemplate* chat_template, TrainOn train_on,
             OrderedJson variables = OrderedJson::object(), Think think = Think::stock, std::string system = {});

  // A text gets the tokenizer's own special tokens and its end token; a chat is what its template prints; a labelled input
  // becomes one of them; of a preference the
  // chosen side is followed by the rejected one. Throws DataError where no token is trained, or none of an answer or where
  // both answers are the same, and UsageError where a preference's prompt is to be trained.
  Example encode(const RowContent& row) const;

 private:
  Example encode_segment(const Chat& chat) const;
  Example encode_segment(const PlainText& text) const;
  Example encode_pair(const PreferencePair& pair) const;
  Example encode_labelled(const LabelledInput& row) const;

  const text::Tokenizer& tokenizer_;
  std::optional<ChatMask> mask_;
  TrainOn train_on_;
  std::string system_;
};

}  // namespace nibble::data
