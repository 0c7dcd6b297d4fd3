#include "nibble/data/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <future>
#include <limits>
#include <thread>

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/data/open_rows.h"

namespace nibble::data {
namespace {

constexpr std::string_view in_dataset = "data";

constexpr std::pair<Overflow, std::string_view> overflow_names[] = {{Overflow::error, "error"},
                                                                    {Overflow::drop, "drop"},
                                                                    {Overflow::cut, "cut"},
                                                                    {Overflow::split, "split"}};

std::uint32_t count_trained(const Example& example) {
  return static_cast<std::uint32_t>(std::count(example.trained.begin(), example.trained.end(), 1));
}

// Tokens [begin, begin + count) of a row; its first one is not trained.
Example part_of(const Example& row, std::size_t begin, std::size_t count) {
  const auto first = static_cast<std::ptrdiff_t>(begin);
  const auto last = static_cast<std::ptrdiff_t>(begin + count);
  Example piece{.tokens = {row.tokens.begin() + first, row.tokens.begin() + last},
                .trained = {row.trained.begin() + first, row.trained.begin() + last}};
  piece.trained.front() = 0;
  return piece;
}

// The first `limit` tokens of each side of a preference.
Example cut_sides(const Example& row, std::uint32_t limit) {
  const std::uint32_t chosen = std::min(row.rejected_begin, limit);
  const auto rejected = std::min(static_cast<std::uint32_t>(row.tokens.size()) - row.rejected_begin, limit);
  Example result = part_of(row, 0, chosen);
  const Example second = part_of(row, row.rejected_begin, rejected);
  result.rejected_begin = chosen;
  result.tokens.insert(result.tokens.end(), second.tokens.begin(), second.tokens.end());
  result.trained.insert(result.trained.end(), second.trained.begin(), second.trained.end());
  return result;
}

// 0 where a preference has an answer without one: then nothing can be compared.
std::uint32_t usable_labels(const Example& example) {
  const auto rejected = example.trained.begin() + example.rejected_begin;
  const bool one_sided = example.is_pair() && (std::count(example.trained.begin(), rejected, 1) == 0 ||
                                               std::count(rejected, example.trained.end(), 1) == 0);
  return one_sided ? 0 : count_trained(example);
}

std::uint32_t longer_side(std::uint32_t tokens, std::uint32_t rejected_begin) {
  return std::max(rejected_begin, tokens - rejected_begin);
}

std::uint32_t checksum_of(std::string_view line) {
  Fnv1a64 hash;
  hash.add(line);
  return static_cast<std::uint32_t>(hash.value() ^ (hash.value() >> 32));
}

// Calls work(i) for each i below `count`, on several threads where that pays. What a call throws is thrown here.
template <typename Work>
void run_in_parallel(std::size_t count, unsigned wanted, const Work& work) {
  constexpr std::size_t least_per_thread = 32;
  const std::size_t cores = wanted != 0 ? wanted : std::min(16u, std::max(1u, std::thread::hardware_concurrency()));
  const std::size_t threads = std::min(cores, count / least_per_thread + 1);
  std::atomic<std::size_t> next = 0;
  const auto run = [&] {
    for (std::size_t i = next++; i < count; i = next++) work(i);
  };
  std::vector<std::future<void>> helpers;
  for (std::size_t i = 1; i < threads; ++i) helpers.push_back(std::async(std::launch::async, run));
  run();
  for (auto& helper : helpers) helper.get();
}

std::size_t bytes_of(const Example& example) { return example.tokens.size() * 5 + sizeof(Example); }

}  // namespace

std::string_view name_of(Overflow overflow) {
  for (const auto& [value, name] : overflow_names) {
    if (value == overflow) return name;
  }
  return "?";
}

Overflow overflow_of(std::string_view name) {
  for (const auto& [value, known] : overflow_names) {
    if (known == name) return value;
  }
  fail<UsageError>(in_dataset, "Over-long rows cannot be treated by \"{}\"; choose error, drop, cut or split.", name);
}

Dataset::Dataset(const DataFiles& files, const text::Tokenizer& tokenizer, const text::ChatTemplate* chat_template,
                 DatasetOptions options)
    : encoder_(tokenizer, chat_template, options.train_on, options.template_variables, options.think, options.system),
      options_(std::move(options)) {
  check<UsageError>(options_.max_length >= 2, in_dataset, "The longest row may have {} tokens, but at least 2 are needed.",
                    options_.max_length);
  check<UsageError>(!files.empty(), in_dataset, "There is no file to read.");
  for (const DataFile& file : files.files()) {
    RowText text = open_rows(file.path);
    Source source{.file = std::move(text.file)};
    source.examples.name = std::move(text.name);
    source.form_known = options_.form.has_value();
    source.examples.form = options_.form.value_or(RowForm::text);
    const DatasetCounts before = counts_;
    index(source, files.files().size());
    const bool too_long = options_.overflow == Overflow::error && counts_.over_long_rows > before.over_long_rows;
    check<DataError>(source.examples.end > source.examples.begin || too_long, in_dataset,
                     "{}: No row is left to train on ({} rows, {} bad, {} over-long, {} pieces whose trained tokens were cut off).", source.examples.name,
                     source.examples.rows, counts_.bad_rows - before.bad_rows, counts_.over_long_rows - before.over_long_rows,
                     counts_.untrained_pieces - before.untrained_pieces);
    log_info(fmt::format("{}: {} row{} of the form {}", source.examples.name, source.examples.rows, source.examples.rows == 1 ? "" : "s",
                         name_of(source.examples.form)));
    files_.push_back(std::move(source));
  }
  counts_.examples = records_.size();
  check_overflow();
  check_forms();
}

void Dataset::check_forms() const {
  const auto takes_pairs = [](const Source& source) { return source.examples.form == RowForm::preference; };
  const bool texts = std::all_of(files_.begin(), files_.end(), [](const Source& source) { return source.examples.form == RowForm::text; });
  check<UsageError>(options_.system.empty() || !texts, "--system",
                    "The rows are of the form text, which no system message can begin; leave it out, or give rows of messages.");
  const auto other = std::find_if(files_.begin(), files_.end(),
                                  [&](const Source& source) { return takes_pairs(source) != takes_pairs(files_.front()); });
  if (other == files_.end()) return;
  fail<UsageError>(in_dataset, "{} holds rows of the form {} and {} of the form {}; preferences and other rows do not mix.",
                   files_.front().examples.name, name_of(files_.front().examples.form), other->examples.name,
                   name_of(other->examples.form));
}

void Dataset::index(Source& source, std::size_t files) {
  constexpr std::size_t block_lines = 4096;
  constexpr std::size_t block_bytes = std::size_t{16} << 20;
  source.examples.begin = records_.size();
  const std::uint64_t rows_before = counts_.rows;
  LineReader reader(source.file, source.examples.name);
  bool more = true;
  while (more) {
    std::vector<Line> lines;
    std::size_t bytes = 0;
    for (Line line; lines.size() < block_lines && bytes < block_bytes && (more = reader.next(line));) {
      if (line.text.find_first_not_of(" \t") == std::string::npos) continue;
      bytes += line.text.size();
      lines.push_back(std::move(line));
    }
    index_block(source, lines);
    if (!options_.progress) continue;
    const double read = more ? static_cast<double>(lines.back().offset + lines.back().text.size()) / static_cast<double>(source.file.size()) : 1.0;
    options_.progress((static_cast<double>(files_.size()) + read) / static_cast<double>(files));
  }
  source.hash = reader.hash();
  source.examples.end = records_.size();
  source.examples.rows = counts_.rows - rows_before;
}

// Encodes on all cores and then adds in the file's order, so the result does not depend on the threads.
void Dataset::index_block(Source& source, const std::vector<Line>& lines) {
  if (!source.form_known) detect_form(source, lines);
  check<UsageError>(source.examples.form != RowForm::preference || options_.overflow != Overflow::split, "--overflow",
                    "A preference cannot be split; choose error, drop or cut.");
  std::vector<std::variant<Example, std::string>> encoded(lines.size());
  run_in_parallel(lines.size(), options_.threads, [&](std::size_t i) { encoded[i] = encode(source, lines[i]); });
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (const auto* fault = std::get_if<std::string>(&encoded[i])) {
      ++counts_.bad_rows;
      check<DataError>(options_.skip_bad_rows, in_dataset, "{}, line {}: {}", source.examples.name, lines[i].number, *fault);
      continue;
    }
    const bool none_before = counts_.over_long_rows == 0;
    add_row(std::get<Example>(encoded[i]), {.offset = lines[i].offset,
                                            .line = static_cast<std::uint32_t>(lines[i].number),
                                            .checksum = checksum_of(lines[i].text)});
    if (none_before && counts_.over_long_rows > 0) {
      first_over_long_ = fmt::format("{}, line {}", source.examples.name, lines[i].number);
    }
  }
}

// By the first line that has one.
void Dataset::detect_form(Source& source, const std::vector<Line>& lines) const {
  for (const Line& line : lines) {
    try {
      source.examples.form = detect_row_form(options_.map.apply(parse_row(line.text)));
      source.form_known = true;
      return;
    } catch (const DataError& error) {
      check<DataError>(options_.skip_bad_rows, in_dataset, "{}, line {}: {}", source.examples.name, line.number,
                       sentence_of(error));
    }
  }
}

std::variant<Example, std::string> Dataset::encode(const Source& source, const Line& line) const {
  try {
    check<DataError>(line.number <= std::numeric_limits<std::uint32_t>::max(), in_dataset, "The file has over 2^32 lines.");
    return encoder_.encode(read_row(options_.map.apply(parse_row(line.text)), source.examples.form));
  } catch (const DataError& error) {
    return std::string(sentence_of(error));
  }
}

// `record` has offset, line and checksum.
void Dataset::add_row(const Example& example, Record record) {
  const auto tokens = static_cast<std::uint32_t>(example.tokens.size());
  const std::uint32_t length = longer_side(tokens, example.rejected_begin);
  ++counts_.rows;
  ++counts_.histogram[static_cast<std::size_t>(std::bit_width(length - 1))];
  counts_.longest_row = std::max(counts_.longest_row, length);
  const std::uint32_t limit = options_.max_length;
  const bool over_long = length > limit;
  counts_.over_long_rows += over_long;
  if (over_long && (options_.overflow == Overflow::drop || options_.overflow == Overflow::error)) return;
  if (example.is_pair()) {
    add_piece(example, record);
    return;
  }
  const std::uint32_t end = options_.overflow == Overflow::cut ? std::min(length, limit) : length;
  for (record.begin = 0;; record.begin += record.tokens - 1) {
    record.tokens = std::min(limit, end - record.begin);
    add_piece(example, record);
    if (record.begin + record.tokens == end) return;
  }
}

void Dataset::add_piece(const Example& row, Record record) {
  Example piece = piece_of(row, record);
  record.tokens = static_cast<std::uint32_t>(piece.tokens.size());
  record.trained = usable_labels(piece);
  record.rejected_begin = piece.rejected_begin;
  if (record.trained == 0) {
    ++counts_.untrained_pieces;
    return;
  }
  counts_.tokens += record.tokens;
  counts_.trained_tokens += record.trained;
  const std::size_t bytes = bytes_of(piece);
  if (cache_.size() == records_.size() && bytes <= options_.cache_bytes) {
    options_.cache_bytes -= bytes;
    cache_.push_back(std::move(piece));
  }
  records_.push_back(record);
}

Example Dataset::piece_of(const Example& row, const Record& record) const {
  return row.is_pair() ? cut_sides(row, options_.max_length) : part_of(row, record.begin, record.tokens);
}

void Dataset::check_overflow() const {
  if (options_.overflow != Overflow::error || counts_.over_long_rows == 0) return;
  fail<DataError>(in_dataset,
                  "{} of {} rows have more than {} tokens (the longest {}; the first in {}). Raise "
                  "--max-length, up to the model's positions, or choose --overflow drop, cut or split.",
                  counts_.over_long_rows, counts_.rows, options_.max_length, counts_.longest_row, first_over_long_);
}

const Dataset::Source& Dataset::source_of(std::size_t example) const {
  return *std::upper_bound(files_.begin(), files_.end(), example,
                           [](std::size_t index, const Source& source) { return index < source.examples.end; });
}

std::vector<FileExamples> Dataset::files() const {
  std::vector<FileExamples> result;
  for (const Source& source : files_) result.push_back(source.examples);
  return result;
}

std::string Dataset::form_names() const {
  std::string names;
  for (const Source& source : files_) {
    const std::string_view name = name_of(source.examples.form);
    if (names.find(name) == names.npos) names += (names.empty() ? "" : ", ") + std::string(name);
  }
  return names;
}

std::uint64_t Dataset::hash() const {
  if (files_.size() == 1) return files_.front().hash;
  Fnv1a64 hash;
  for (const Source& source : files_) hash.add(fmt::format("{:016x}", source.hash));
  return hash.value();
}

std::uint32_t Dataset::longest_segment(std::size_t example) const {
  return longer_side(records_[example].tokens, records_[example].rejected_begin);
}

std::vector<std::uint32_t> Dataset::lengths() const {
  std::vector<std::uint32_t> result;
  result.reserve(records_.size());
  for (const Record& record : records_) result.push_back(record.tokens);
  return result;
}

Example Dataset::example(std::size_t index) const {
  check<UsageError>(index < records_.size(), in_dataset, "There is no example {}; there are {}.", index, records_.size());
  if (index < cache_.size()) return cache_[index];
  const Record& record = records_[index];
  const Source& source = source_of(index);
  const std::string line = LineReader::read_at(source.file, record.offset);
  check<DataError>(checksum_of(line) == record.checksum, in_dataset,
                   "{}, line {}: The file has changed while it was in use.", source.examples.name, record.line);
  return piece_of(encoder_.encode(read_row(options_.map.apply(parse_row(line)), source.examples.form)), record);
}

Batch Dataset::batch(std::span<const std::uint32_t> examples) const {
  std::vector<Example> read;
  std::vector<std::uint64_t> rows;
  std::vector<std::string> names;
  for (const std::uint32_t index : examples) {
    read.push_back(example(index));
    rows.push_back(row(index));
    names.push_back(file_name(index));
  }
  Batch batch = make_batch(read, rows);
  batch.files = std::move(names);
  return batch;
}

}  // namespace nibble::data
