#include "nibble/cli/prompt_rows.h"

#include "nibble/base/error.h"
#include "nibble/data/line_reader.h"
#include "nibble/data/open_rows.h"
#include "nibble/data/row.h"

namespace nibble::cli {
namespace {

using text::OrderedJson;

Tokens chat_tokens(data::Chat chat, const TextFiles& files, const PromptOptions& options) {
  OrderedJson& messages = chat.messages;
  while (!messages.empty() && messages.back().value("role", "") == "assistant") messages.erase(messages.size() - 1);
  check<DataError>(!messages.empty(), "prompt", "The chat has no turn to answer.");
  check<DataError>(!options.raw, "prompt", "The row is a chat; --raw takes rows with a text.");
  if (options.system) set_system(messages, *options.system);
  return files.prompt(messages, chat.tools, options.thinking);
}

// What a row of training data asks.
Tokens tokens_of(const data::RowContent& content, const TextFiles& files, const PromptOptions& options) {
  if (const auto* chat = std::get_if<data::Chat>(&content)) return chat_tokens(*chat, files, options);
  if (const auto* plain = std::get_if<data::PlainText>(&content)) {
    check<DataError>(plain->trained_from > 0, "prompt", "The row is a text without a prompt.");
    return files.tokenizer.encode(plain->text.substr(0, plain->trained_from)).ids;
  }
  if (const auto* pair = std::get_if<data::PreferencePair>(&content)) {
    return std::visit([&](const auto& side) { return tokens_of(data::RowContent(side), files, options); }, pair->chosen);
  }
  fail<DataError>("prompt", "The row has a label; `nibble eval` finds the labels of such rows.");
}

Tokens tokens_of_row(const OrderedJson& row, const TextFiles& files, const PromptOptions& options) {
  const bool alone = row.is_object() && row.contains("prompt") && !row.contains("completion") && !row.contains("chosen");
  if (!alone) return tokens_of(data::read_row(row, data::detect_row_form(row)), files, options);
  const OrderedJson& prompt = row["prompt"];
  if (prompt.is_string()) {
    const std::string text = prompt.get<std::string>();
    if (options.raw) return files.tokenizer.encode(text).ids;
    return chat_tokens({.messages = OrderedJson::array({message("user", text)}), .tools = nullptr}, files, options);
  }
  check<DataError>(prompt.is_array(), "prompt", "\"prompt\" is {}; a text or a list of messages is expected.", prompt.type_name());
  OrderedJson chat = {{"messages", prompt}};
  if (row.contains("tools")) chat["tools"] = row["tools"];
  return tokens_of(data::read_row(chat, data::RowForm::messages), files, options);
}

}  // namespace

std::vector<PromptRow> read_prompt_rows(const std::string& path, const TextFiles& files, const PromptOptions& options) {
  const data::RowText text = data::open_rows(path);
  data::LineReader reader(text.file, text.name);
  std::vector<PromptRow> rows;
  const std::uint32_t most = files.config.max_position_embeddings;
  for (data::Line line; reader.next(line);) {
    if (line.text.find_first_not_of(" \t") == line.text.npos) continue;
    const std::string place = fmt::format("{}:{}", text.name, line.number);
    try {
      rows.push_back({line.number, tokens_of_row(data::parse_row(line.text), files, options)});
    } catch (const DataError& error) {
      fail<DataError>(place, "{}", data::sentence_of(error));
    }
    const std::size_t count = rows.back().tokens.size();
    check<DataError>(count > 0 && count < most, place, "The prompt has {} tokens; prompt and answer together may have {}.", count, most);
  }
  check<DataError>(!rows.empty(), path, "The file has no prompts; a JSON object a line is expected.");
  return rows;
}

}  // namespace nibble::cli
