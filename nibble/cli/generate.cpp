#include "nibble/base/error.h"
#include "nibble/cli/command.h"
#include "nibble/cli/prompt_rows.h"
#include "nibble/cli/terminal.h"
#include "nibble/cli/text_model.h"
#include "nibble/data/row.h"
#include "nibble/io/json.h"
#include "nibble/report/progress.h"

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>

namespace nibble::cli {
namespace {

constexpr std::uint32_t most_batch_size = 256;
constexpr std::uint64_t max_prompt_bytes = std::uint64_t{64} << 20;

struct GenerateFlags {
  AnswerFlags answer;
  std::optional<std::string> prompt, prompt_file, messages, prompts, system;
  std::optional<std::uint32_t> batch_size;
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
    fail<DataError>(path, "{}", data::sentence_of(error));
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
  if (flags.system) set_system(chat.messages, *flags.system);
  return files.prompt(chat.messages, chat.tools, flags.answer.thinking);
}

Json report_of(const Answer& answer, const Tokens& all, std::uint64_t seed) {
  const std::size_t prompt_tokens = all.size() - answer.new_tokens;
  const Tokens ids(all.begin() + static_cast<std::ptrdiff_t>(prompt_tokens), all.end());
  return {{"text", answer.text},
          {"token_ids", ids},
          {"end", name_of(answer.end)},
          {"prompt_tokens", prompt_tokens},
          {"new_tokens", answer.new_tokens},
          {"seed", seed},
          {"prompt_seconds", answer.prompt_seconds},
          {"tokens_per_second", answer.tokens_per_second()}};
}

std::uint32_t capacity_for(std::size_t prompt_tokens, const GenerateFlags& flags, const TextFiles& files) {
  const std::uint64_t capacity = std::uint64_t{prompt_tokens} + flags.answer.max_new_tokens;
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, files.config.max_position_embeddings));
}

// A line of JSON a prompt, in the order of the prompts, as soon as all before it are there.
int answer_rows(const GenerateFlags& flags, const TextFiles& files) {
  const std::vector<PromptRow> rows =
      read_prompt_rows(*flags.prompts, files, {.system = flags.system, .thinking = flags.answer.thinking, .raw = flags.raw});
  std::vector<Tokens> prompts;
  std::size_t longest = 0;
  for (const PromptRow& row : rows) {
    prompts.push_back(row.tokens);
    longest = std::max(longest, row.tokens.size());
  }
  const SamplingOptions sampling = flags.answer.sampling.options(files.config.generation);
  const auto most = static_cast<std::uint32_t>(std::min<std::size_t>(flags.batch_size.value_or(most_batch_size), rows.size()));
  TextModel model(files, flags.answer, capacity_for(longest, flags, files), {.most = most, .as_fit = !flags.batch_size});
  Progress progress(stderr, is_terminal(stderr));
  std::map<std::size_t, Json> waiting;
  std::size_t written = 0, answered = 0, tokens = 0;
  const auto begin = std::chrono::steady_clock::now();
  model.answer_all(prompts, sampling, [&](std::size_t index, const Answer& answer, const Tokens& all) {
    Json report = report_of(answer, all, sampling.seed + index);
    report["line"] = rows[index].line;
    waiting.emplace(index, std::move(report));
    tokens += answer.new_tokens;
    progress.part("Answering", static_cast<double>(++answered) / static_cast<double>(rows.size()));
    for (auto it = waiting.begin(); it != waiting.end() && it->first == written; it = waiting.erase(it), ++written) {
      fmt::print("{}\n", write_json_line(it->second));
    }
    // A full disk is no reason to answer the others.
    const bool arrived = std::fflush(stdout) == 0;
    check<DataError>(arrived, "standard output", "Writing failed: {}.", std::strerror(errno));
  });
  progress.finish_line();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  fmt::print(stderr, "{} prompts answered, {} at a time: {} new tokens in {:.2f} s, {:.1f} tokens/s\n", rows.size(), model.sequences(), tokens,
             seconds, static_cast<double>(tokens) / seconds);
  print_profile(model.device());
  return exit_done;
}

int run(const GenerateFlags& given) {
  GenerateFlags flags = given;
  const int prompts =
      flags.prompt.has_value() + flags.prompt_file.has_value() + flags.messages.has_value() + flags.prompts.has_value();
  check<UsageError>(prompts == 1, "generate", "Give one of --prompt, --prompt-file, --messages and --prompts; {} were given.", prompts);
  check<UsageError>(!flags.raw || (!flags.messages && !flags.system), "generate",
                    "--raw takes a text as it is; it does not go with --messages or --system.");
  if (flags.no_adapter) flags.answer.adapter.clear();
  const TextFiles files(flags.answer.model, flags.answer.adapter);
  if (flags.prompts) return answer_rows(flags, files);
  TokenSampler sampler(flags.answer.sampling.options(files.config.generation));
  Tokens text = read_prompt(flags, files);
  const std::size_t prompt_tokens = text.size();
  check<DataError>(prompt_tokens > 0, "generate", "The prompt is empty.");
  check<DataError>(prompt_tokens < files.config.max_position_embeddings, "generate",
                   "The prompt has {} tokens; prompt and answer together may have {}.", prompt_tokens,
                   files.config.max_position_embeddings);
  TextModel model(files, flags.answer, capacity_for(prompt_tokens, flags, files));
  const bool terminal = is_terminal(stdout);
  const Answer answer = model.answer(text, sampler, [&](std::string_view piece) {
    if (flags.json) return;
    fmt::print("{}", terminal ? printable(piece) : std::string(piece));
    std::fflush(stdout);
  });
  if (flags.json) {
    fmt::print("{}\n", write_json(report_of(answer, text, flags.answer.sampling.seed)));
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
      "generate", "Answers one prompt, or all of a file, with or without an adapter.\n"
                  "The answer goes to standard output as it is produced, figures to standard error.");
  verb->add_option("--prompt", flags->prompt, "What the user says");
  verb->add_option("--prompt-file", flags->prompt_file, "The same from a file");
  verb->add_option("--messages", flags->messages, "File with a chat as JSON: a list of {\"role\", \"content\"}, or an object with "
                                                  "\"messages\" and \"tools\"");
  verb->add_option("--prompts", flags->prompts, "Prompts of a JSON Lines file, several answered at a time, a line of JSON each: rows\n"
                                                "{\"prompt\": a text or messages}, or training rows, whose last answer is left out");
  verb->add_option("--batch-size", flags->batch_size, "With --prompts: answers at a time. Up to 8, on matrix units 64, share each reading of the\n"
                                                      "weights; memory for keys and values grows with them. Not given: so many, but what half of\n"
                                                      "the GPU's memory that is left has room for")->check(CLI::Range(1u, most_batch_size));
  verb->add_option("--system", flags->system, "System message to begin with, in place of a chat's own");
  verb->add_flag("--raw", flags->raw, "Continue the text as it is, without the chat template");
  verb->add_flag("--no-adapter", flags->no_adapter, "Leave --adapter out, to compare");
  verb->add_flag("--json", flags->json, "Print answer and figures as JSON");
  flags->answer.add_to(*verb);
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
