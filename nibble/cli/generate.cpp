#include "nibble/base/error.h"
#include "nibble/cli/command.h"
#include "nibble/cli/terminal.h"
#include "nibble/cli/text_model.h"
#include "nibble/data/row.h"
#include "nibble/io/json.h"

#include <fmt/format.h>

namespace nibble::cli {
namespace {

constexpr std::uint64_t max_prompt_bytes = std::uint64_t{64} << 20;

struct GenerateFlags {
  AnswerFlags answer;
  std::optional<std::string> prompt, prompt_file, messages, system;
  bool no_adapter = false, raw = false, json = false;
};

// {"messages": [...], "tools"?: [...]}, or the list of messages alone.
data::Chat read_messages(const std::string& path) {
  text::OrderedJson row = data::parse_inner(read_file(path, max_prompt_bytes));
  check<DataError>(!row.is_discarded(), path, "The file is not JSON; a list of messages is expected.");
  if (row.is_array()) row = {{"messages", row}};
  check<DataError>(row.is_object(), path, "The file holds {}; a list of messages is expected.", row.type_name());
  try {
    return std::get<data::Chat>(data::read_row(row, data::RowForm::messages));
  } catch (const DataError& error) {
    fail<DataError>(path, "{}", error.what());
  }
}

Tokens read_prompt(const GenerateFlags& flags, const TextFiles& files) {
  data::Chat chat{.messages = text::OrderedJson::array(), .tools = nullptr};
  if (flags.messages) {
    chat = read_messages(*flags.messages);
  } else {
    const std::string text = flags.prompt ? *flags.prompt : read_file(*flags.prompt_file, max_prompt_bytes);
    if (flags.raw) return files.tokenizer.encode(text).ids;
    chat.messages.push_back(message("user", text));
  }
  if (flags.system) chat.messages.insert(chat.messages.begin(), message("system", *flags.system));
  return files.prompt(chat.messages, chat.tools, flags.answer.thinking);
}

void print_json(const Answer& answer, const Tokens& all, std::size_t prompt_tokens, std::uint64_t seed) {
  const Tokens ids(all.begin() + static_cast<std::ptrdiff_t>(prompt_tokens), all.end());
  const Json report = {{"text", answer.text},
                       {"token_ids", ids},
                       {"end", name_of(answer.end)},
                       {"prompt_tokens", prompt_tokens},
                       {"new_tokens", answer.new_tokens},
                       {"seed", seed},
                       {"prompt_seconds", answer.prompt_seconds},
                       {"tokens_per_second", answer.tokens_per_second()}};
  fmt::print("{}\n", write_json(report));
}

int run(const GenerateFlags& given) {
  GenerateFlags flags = given;
  const int prompts = flags.prompt.has_value() + flags.prompt_file.has_value() + flags.messages.has_value();
  check<UsageError>(prompts == 1, "generate", "Give one of --prompt, --prompt-file and --messages; {} were given.", prompts);
  check<UsageError>(!flags.raw || (!flags.messages && !flags.system), "generate",
                    "--raw takes a text as it is; it does not go with --messages or --system.");
  if (flags.no_adapter) flags.answer.adapter.clear();
  const TextFiles files(flags.answer.model);
  TokenSampler sampler(flags.answer.sampling(files.config));
  Tokens text = read_prompt(flags, files);
  const std::size_t prompt_tokens = text.size();
  check<DataError>(prompt_tokens > 0, "generate", "The prompt is empty.");
  check<DataError>(prompt_tokens < files.config.max_position_embeddings, "generate",
                   "The prompt has {} tokens; prompt and answer together may have {}.", prompt_tokens,
                   files.config.max_position_embeddings);
  const std::uint64_t capacity = prompt_tokens + flags.answer.max_new_tokens;
  TextModel model(files, flags.answer,
                  static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, files.config.max_position_embeddings)));
  const bool terminal = is_terminal(stdout);
  const Answer answer = model.answer(text, sampler, [&](std::string_view piece) {
    if (flags.json) return;
    fmt::print("{}", terminal ? printable(piece) : std::string(piece));
    std::fflush(stdout);
  });
  if (flags.json) {
    print_json(answer, text, prompt_tokens, flags.answer.seed);
  } else {
    if (!answer.text.ends_with('\n')) fmt::print("\n");
    std::fflush(stdout);
    fmt::print(stderr, "{} prompt tokens in {:.2f} s, {} new tokens at {:.1f} tokens/s, ended by {}\n", prompt_tokens,
               answer.prompt_seconds, answer.new_tokens, answer.tokens_per_second(), name_of(answer.end));
  }
  print_profile(model.device());
  return exit_done;
}

}  // namespace

void add_generate(CLI::App& app, Action& action) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* verb = app.add_subcommand(
      "generate", "Answers one prompt, with or without an adapter.\n"
                  "The answer goes to standard output as it is produced, figures to standard error.");
  verb->add_option("--prompt", flags->prompt, "What the user says");
  verb->add_option("--prompt-file", flags->prompt_file, "The same from a file");
  verb->add_option("--messages", flags->messages, "A chat as JSON: a list of {\"role\", \"content\"}, or an object with "
                                                  "\"messages\" and \"tools\"");
  verb->add_option("--system", flags->system, "System message to begin with");
  verb->add_flag("--raw", flags->raw, "Continue the text as it is, without the chat template");
  verb->add_flag("--no-adapter", flags->no_adapter, "Leave --adapter out, to compare");
  verb->add_flag("--json", flags->json, "Print answer and figures as JSON");
  flags->answer.add_to(*verb);
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
