#include "nibble/cli/info.h"
#include "nibble/cli/terminal.h"
#include "nibble/data/dataset.h"
#include "nibble/data/sampler.h"
#include "nibble/io/json.h"
#include "nibble/report/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

namespace nibble::cli {
namespace {

constexpr std::size_t tokens_shown = 600;  // of a row

struct Bar {
  std::uint64_t from, to, rows;  // tokens of a row, both included
};

std::vector<Bar> bars_of(const data::DatasetCounts& counts) {
  std::vector<Bar> bars;
  for (std::size_t i = 0; i < counts.histogram.size(); ++i) {
    const std::uint64_t to = std::uint64_t{1} << i;
    if (counts.histogram[i] > 0 || !bars.empty()) bars.push_back({i == 0 ? 1 : to / 2 + 1, to, counts.histogram[i]});
  }
  while (!bars.empty() && bars.back().rows == 0) bars.pop_back();
  return bars;
}

// Rows of the file with more tokens than --max-length; the data set itself was opened without a limit.
std::uint64_t over_long(const data::Dataset& rows, std::uint32_t max_length) {
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) count += rows.longest_segment(i) > max_length;
  return count;
}

// A token's text for a reader: nothing in it can steer the terminal, and ends of lines are seen.
std::string visible(std::string_view text) {
  std::string result;
  for (const char c : printable(text)) result += c == '\n' ? std::string("\u21b5\n") : std::string(1, c);
  return result;
}

// Two shades of each kind take turns, so that one token is told from the next.
std::string_view style_of(bool trained, bool odd) {
  if (trained) return odd ? "\x1b[30;48;5;114m" : "\x1b[30;48;5;157m";
  return odd ? "\x1b[38;5;252;48;5;236m" : "\x1b[38;5;252;48;5;240m";
}

std::string coloured(std::string_view text, bool trained, bool odd) {
  std::string result(style_of(trained, odd));
  for (const char c : text) result += c == '\n' ? fmt::format("\x1b[0m\n{}", style_of(trained, odd)) : std::string(1, c);
  return result + "\x1b[0m";
}

std::string row_text(const data::Example& row, const text::Tokenizer& tokenizer, bool colour) {
  text::StreamDecoder decoder(tokenizer);
  std::string result;
  const std::size_t count = std::min(row.tokens.size(), tokens_shown);
  for (std::size_t i = 0; i < count; ++i) {
    const bool trained = row.trained[i] != 0, before = i > 0 && row.trained[i - 1] != 0;
    // A character in several tokens is shown with the last of them.
    const std::string text = visible(decoder.push(static_cast<text::TokenId>(row.tokens[i])));
    if (colour) {
      result += coloured(text, trained, i % 2 == 1);
      continue;
    }
    if (trained != before) result += trained ? "\u27e6" : "\u27e7";
    if (i > 0 && trained == before) result += "\u2502";
    result += text;
  }
  if (!colour && count > 0 && row.trained[count - 1] != 0) result += "\u27e7";
  while (result.ends_with('\n')) result.pop_back();
  if (count < row.tokens.size()) result += fmt::format(" ... {} more tokens", grouped(row.tokens.size() - count));
  return result;
}

// The segments of a preference, each by itself.
std::pair<data::Example, data::Example> sides_of(const data::Example& row) {
  const auto begin = static_cast<std::ptrdiff_t>(row.rejected_begin);
  return {{.tokens = {row.tokens.begin(), row.tokens.begin() + begin}, .trained = {row.trained.begin(), row.trained.begin() + begin}},
          {.tokens = {row.tokens.begin() + begin, row.tokens.end()}, .trained = {row.trained.begin() + begin, row.trained.end()}}};
}

void print_rows(const data::Dataset& rows, const text::Tokenizer& tokenizer, const InfoFlags& flags) {
  const bool colour = flags.color == "always" || (flags.color == "auto" && is_terminal(stdout));
  const std::size_t count = std::min<std::uint64_t>(flags.rows, rows.size());
  const auto legend = colour ? "Trained tokens are green." : "Trained tokens stand in \u27e6\u27e7; \u2502 divides tokens.";
  if (count > 0) fmt::print("{}\n\n", legend);
  const bool several = rows.files().size() > 1;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string file = several ? rows.file_name(i) + ", line" : "Line";
    fmt::print("{} {}: {} tokens, {} trained\n", printable(file), rows.row(i), grouped(rows.tokens(i)), grouped(rows.trained_tokens(i)));
    const data::Example row = rows.example(i);
    if (row.is_pair()) {
      const auto [chosen, rejected] = sides_of(row);
      fmt::print("Chosen:\n{}\nRejected:\n{}\n\n", row_text(chosen, tokenizer, colour), row_text(rejected, tokenizer, colour));
    } else {
      fmt::print("{}\n\n", row_text(row, tokenizer, colour));
    }
  }
}

void print_histogram(const std::vector<Bar>& bars) {
  std::uint64_t most = 1;
  for (const Bar& bar : bars) most = std::max(most, bar.rows);
  fmt::print("\n{:>19} {:>10}\n", "tokens of a row", "rows");
  for (const Bar& bar : bars) {
    const auto width = static_cast<std::size_t>((bar.rows * 50 + most - 1) / most);
    const std::string range = fmt::format("{} to {}", grouped(bar.from), grouped(bar.to));
    fmt::print("{:>19} {:>10} {}\n", range, grouped(bar.rows), std::string(width, '#'));
  }
}

// How many examples of each file an epoch takes; each once where the files have no weights.
std::vector<std::uint32_t> taken(const data::Dataset& rows, const data::DataFiles& files) {
  std::vector<data::Share> shares;
  std::vector<std::uint32_t> result;
  for (const data::FileExamples& part : rows.files()) {
    result.push_back(static_cast<std::uint32_t>(part.end - part.begin));
    shares.push_back({.examples = result.back(), .weight = files.files()[shares.size()].weight.value_or(1)});
  }
  return files.weighted() ? data::drawn_of(shares, static_cast<std::uint32_t>(rows.size())) : result;
}

void print_text(const data::Dataset& rows, const data::DataFiles& files, const text::Tokenizer& tokenizer, const InfoFlags& flags) {
  const auto& counts = rows.counts();
  print_rows(rows, tokenizer, flags);
  print_fact("form", rows.form_names());
  if (files.files().size() > 1) {
    const auto of_epoch = taken(rows, files);
    const auto parts = rows.files();
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const data::FileExamples& part = parts[i];
      print_fact("file", fmt::format("{} ({}): {} rows, {} an epoch", part.name, data::name_of(part.form), grouped(part.rows),
                                     grouped(of_epoch[i])));
    }
  }
  print_fact("rows", grouped(counts.rows));
  if (flags.skip_bad_rows) print_fact("bad rows", grouped(counts.bad_rows));
  print_fact("tokens", grouped(counts.tokens));
  const double share = static_cast<double>(counts.trained_tokens) / static_cast<double>(counts.tokens);
  print_fact("trained tokens", fmt::format("{} ({:.1f}%)", grouped(counts.trained_tokens), 100 * share));
  print_fact("longest row", fmt::format("{} tokens", grouped(counts.longest_row)));
  print_fact(fmt::format("over {} tokens", flags.max_length),
             fmt::format("{} rows", grouped(over_long(rows, flags.max_length))));
  print_histogram(bars_of(counts));
}

Json to_json(const data::Dataset& rows, const data::DataFiles& files, const InfoFlags& flags) {
  Json shown = Json::array(), bars = Json::array();
  for (std::size_t i = 0; i < std::min<std::uint64_t>(flags.rows, rows.size()); ++i) {
    const data::Example row = rows.example(i);
    shown.push_back({{"line", rows.row(i)}, {"tokens", row.tokens}, {"trained", row.trained}});
    if (row.is_pair()) shown.back()["rejected_begin"] = row.rejected_begin;
  }
  for (const Bar& bar : bars_of(rows.counts())) bars.push_back({{"from", bar.from}, {"to", bar.to}, {"rows", bar.rows}});
  const auto& counts = rows.counts();
  Json parts = Json::array();
  const auto of_epoch = taken(rows, files);
  for (const data::FileExamples& part : rows.files()) {
    parts.push_back({{"name", part.name}, {"form", data::name_of(part.form)}, {"rows", part.rows},
                     {"examples_in_epoch", of_epoch[parts.size()]}});
  }
  return {{"form", rows.form_names()},
          {"files", parts},
          {"rows", counts.rows},
          {"bad_rows", counts.bad_rows},
          {"tokens", counts.tokens},
          {"trained_tokens", counts.trained_tokens},
          {"longest_row", counts.longest_row},
          {"max_length", flags.max_length},
          {"over_long_rows", over_long(rows, flags.max_length)},
          {"histogram", bars},
          {"first_rows", shown}};
}

}  // namespace

void info_data(const InfoFlags& flags) {
  Progress progress(stderr, is_terminal(stderr));
  const auto tokenizer = text::Tokenizer::load(flags.model);
  const auto chat_template = text::ChatTemplate::load(flags.model);
  data::DatasetOptions options{.map = flags.data.columns(),
                               .train_on = data::train_on_of(flags.train_on),
                               .think = flags.think,
                               .system = flags.system,
                               .overflow = data::Overflow::cut,
                               .max_length = std::numeric_limits<std::uint32_t>::max(),
                               .skip_bad_rows = flags.skip_bad_rows,
                               .progress = [&](double done) { progress.part("Reading the data", done); }};
  if (flags.format != "auto") options.form = data::row_form_of(flags.format);
  const data::DataFiles files = flags.data.files();
  const data::Dataset rows(files, tokenizer, chat_template ? &*chat_template : nullptr, options);
  if (flags.json) {
    fmt::print("{}\n", write_json(to_json(rows, files, flags)));
  } else {
    print_text(rows, files, tokenizer, flags);
  }
}

}  // namespace nibble::cli
