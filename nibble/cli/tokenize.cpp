#include "nibble/base/error.h"
#include "nibble/cli/command.h"
#include "nibble/cli/terminal.h"
#include "nibble/data/row.h"
#include "nibble/io/json.h"
#include "nibble/text/chat_template.h"
#include "nibble/text/tokenizer.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>

namespace nibble::cli {
namespace {

struct TokenizeFlags {
  std::string model;
  std::optional<std::string> text;
  std::string text_file;
  bool whole = false, decode = false, json = false;
  bool no_special = false, plain = false;
  bool chat = false, generation_prompt = false;
  text::DecodeOptions decode_options;
};

// Lines of a file, of standard input, or one given text; only one is in memory at a time.
class Texts {
 public:
  explicit Texts(const TokenizeFlags& flags) : given_(flags.text), whole_(flags.whole) {
    if (given_) {
      origin_ = "--text";
    } else if (flags.text_file == "-") {
      origin_ = "standard input";
      in_ = &std::cin;
    } else {
      origin_ = flags.text_file;
      check<DataError>(!fs::is_directory(origin_), origin_, "This is a folder; a text file is needed.");
      file_.open(origin_, std::ios::binary);
      if (!file_) fail_with_errno(origin_, "open this file");
      in_ = &file_;
    }
  }

  bool next(std::string& line) {
    ++number_;
    if (given_ || whole_) return number_ == 1 && read_all(line);
    std::getline(*in_, line);
    check_readable();
    return !in_->fail();
  }

  // "FILE, line 3"
  std::string place() const { return given_ || whole_ ? origin_ : fmt::format("{}, line {}", origin_, number_); }

 private:
  bool read_all(std::string& text) {
    if (given_) {
      text = *given_;
    } else {
      text.assign(std::istreambuf_iterator<char>(*in_), {});
      check_readable();
    }
    return true;
  }

  void check_readable() const { check<DataError>(!in_->bad(), origin_, "Reading failed: {}.", std::strerror(errno)); }

  std::optional<std::string> given_;
  bool whole_;
  std::string origin_;
  std::ifstream file_;
  std::istream* in_ = nullptr;
  std::uint64_t number_ = 0;
};

void put(std::string_view text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  check<DataError>(written, "standard output", "Writing failed: {}.", std::strerror(errno));
}

void encode_all(const text::Tokenizer& tokenizer, const TokenizeFlags& flags) {
  Texts texts(flags);
  std::string text, first_broken;
  std::uint64_t broken = 0;
  fmt::memory_buffer out;
  const text::EncodeOptions options{.add_special_tokens = !flags.no_special, .parse_special = !flags.plain};
  while (texts.next(text)) {
    const text::Encoding encoding = tokenizer.encode(text, options);
    if (encoding.replaced > 0 && broken == 0) first_broken = texts.place();
    broken += encoding.replaced;
    out.clear();
    fmt::format_to(std::back_inserter(out), "[{}]\n", fmt::join(encoding.ids, ", "));
    put({out.data(), out.size()});
  }
  if (broken > 0) {
    fmt::print(stderr, "{} broken UTF-8 sequence{} read as U+FFFD, the first in {}.\n", broken,
               broken == 1 ? " was" : "s were", printable(first_broken));
  }
}

// {"messages": [...], "tools"?: [...]}; what else stands there is the template's.
text::ChatRequest parse_chat(const std::string& line, bool generation_prompt) {
  text::OrderedJson json = data::parse_row(line);
  text::ChatRequest request{.add_generation_prompt = generation_prompt};
  check<DataError>(json.contains("messages") && json["messages"].is_array(), "row", "A chat is an object with \"messages\", a list.");
  request.messages = std::move(json["messages"]);
  if (json.contains("tools")) request.tools = std::move(json["tools"]);
  json.erase("messages");
  json.erase("tools");
  request.variables = std::move(json);
  return request;
}

// Each chat as the model's template prints it: its text as a JSON string, or its tokens.
void render_all(const text::Tokenizer& tokenizer, const TokenizeFlags& flags) {
  const auto chat_template = text::ChatTemplate::load(flags.model);
  check<DataError>(chat_template.has_value(), flags.model, "The model has no chat template.");
  Texts lines(flags);
  std::string line;
  while (lines.next(line)) {
    const std::string text = [&] {
      try {
        return chat_template->render(parse_chat(line, flags.generation_prompt)).text;
      } catch (const DataError& error) {
        fail<DataError>(lines.place(), "{}", error.what());
      }
    }();
    put(flags.json ? write_json_line(text) : fmt::format("[{}]", fmt::join(tokenizer.encode(text, {.add_special_tokens = false}).ids, ", ")));
    put("\n");
  }
}

std::vector<text::TokenId> parse_ids(const std::string& line, const std::string& place) {
  const Json parsed = parse_json(line, place);
  check<DataError>(parsed.is_array(), place, "A list of token ids such as [1, 2, 3] is needed, not {}.",
                   parsed.type_name());
  std::vector<text::TokenId> ids;
  ids.reserve(parsed.size());
  for (const Json& id : parsed) {
    check<DataError>(id.is_number_unsigned() && id.get<std::uint64_t>() <= text::max_token_id, place,
                     "A token id is a whole number from 0 to {}, not {}.", text::max_token_id,
                     id.dump(-1, ' ', true, Json::error_handler_t::replace));
    ids.push_back(static_cast<text::TokenId>(id.get<std::uint64_t>()));
  }
  return ids;
}

void decode_all(const text::Tokenizer& tokenizer, const TokenizeFlags& flags) {
  Texts lines(flags);
  const bool terminal = is_terminal(stdout);
  std::string line;
  std::uint64_t unknown = 0;
  while (lines.next(line)) {
    const auto ids = parse_ids(line, lines.place());
    for (const auto id : ids) unknown += tokenizer.id_to_token(id) ? 0 : 1;
    const std::string text = tokenizer.decode(ids, flags.decode_options);
    put(flags.json ? write_json_line(text) : terminal ? printable(text) : text);
    put("\n");
  }
  if (unknown > 0) fmt::print(stderr, "{} id{} no token and gave no text.\n", unknown, unknown == 1 ? " names" : "s name");
}

int run(const TokenizeFlags& flags) {
  check<UsageError>(!flags.json || flags.decode || flags.chat, "tokenize", "--json goes with --decode or --chat.");
  check<UsageError>(flags.text.has_value() != !flags.text_file.empty(), "tokenize", "Give either --text or --text-file.");
  const auto tokenizer = text::Tokenizer::load(flags.model);
  if (flags.decode) {
    decode_all(tokenizer, flags);
  } else if (flags.chat) {
    render_all(tokenizer, flags);
  } else {
    encode_all(tokenizer, flags);
  }
  return exit_done;
}

}  // namespace

void add_tokenize(CLI::App& app, Action& action) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* verb = app.add_subcommand(
      "tokenize", "Turns texts into token ids, or ids into texts.\n"
                  "Each line of a file is one text and gives one line, a JSON list of ids; --decode goes the other way.\n"
                  "With --chat each line is a chat in JSON, which the model's chat template turns into a text first.\n"
                  "A file may be larger than memory.");
  verb->add_option("--model", flags->model, "Model folder (tokenizer.json) or GGUF file")->required();
  verb->add_option("--text", flags->text, "A text, or with --decode a list of ids");
  verb->add_option("--text-file", flags->text_file, "A file with a text, or a list of ids, a line; - is standard input");
  CLI::Option* whole = verb->add_flag("--whole", flags->whole, "Take the file as one text, line feeds included");
  CLI::Option* decode = verb->add_flag("--decode", flags->decode, "Turn ids into texts");
  verb->add_flag("--no-special", flags->no_special,
                 "Leave out the tokens that the tokenizer puts around a text, such as <s>");
  verb->add_flag("--plain", flags->plain, "Read \"<|im_end|>\" and the like in a text as ordinary text");
  verb->add_flag("--skip-special-tokens", flags->decode_options.skip_special_tokens,
                 "Leave special tokens out of decoded texts")
      ->needs(decode);
  CLI::Option* chat = verb->add_flag("--chat", flags->chat, "Lines are chats: {\"messages\": [...], \"tools\": [...]} with the template's variables beside them");
  verb->add_flag("--generation-prompt", flags->generation_prompt, "With --chat: end with what begins an answer")->needs(chat);
  verb->add_flag("--json", flags->json, "With --decode or --chat: print each text as a JSON string");
  chat->excludes(decode)->excludes(whole);
  whole->excludes(decode);
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
