#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "nibble/data/batch.h"
#include "nibble/data/column_map.h"
#include "nibble/data/data_files.h"
#include "nibble/data/line_reader.h"
#include "nibble/data/row.h"
#include "nibble/data/row_encoder.h"
#include "nibble/io/file.h"

namespace nibble::data {

// What happens to a row of more than max_length tokens.
enum class Overflow {
  error,  // the run does not start
  drop,   // the row is left out
  cut,    // its first max_length tokens are used
  split,  // it becomes several examples of at most max_length tokens, each after the last token of the one before; a
          // preference cannot
};

std::string_view name_of(Overflow overflow);
Overflow overflow_of(std::string_view name);  // UsageError listing the names

struct DatasetOptions {
  ColumnMap map = {};
  std::optional<RowForm> form;  // detected by each file's first row where absent
  TrainOn train_on = TrainOn::assistant;
  Think think = Think::stock;
  std::string system = {};  // see RowEncoder
  Overflow overflow = Overflow::error;
  std::uint32_t max_length = 1024;  // in tokens; of each side of a preference
  bool skip_bad_rows = false;       // counts them instead of throwing
  OrderedJson template_variables = OrderedJson::object();
  std::size_t cache_bytes = std::size_t{64} << 20;  // of examples kept in memory
  unsigned threads = 0;             // for the first pass; 0: as many as there are cores, at most 16
  std::function<void(double)> progress = {};  // hears the part of the files that the first pass has read
};

struct DatasetCounts {
  std::uint64_t rows = 0;      // read, bad ones aside
  std::uint64_t examples = 0;  // rows left after drop, cut and split
  std::uint64_t tokens = 0;    // of the examples
  std::uint64_t trained_tokens = 0;
  std::uint64_t over_long_rows = 0;
  std::uint64_t bad_rows = 0;
  std::uint64_t untrained_pieces = 0;  // left out because cut or split left them no trained token
  std::uint32_t longest_row = 0;       // in tokens, before drop, cut and split; of a preference its longer side
  // histogram[i] counts the rows of at most 2^i tokens and more than 2^(i-1).
  std::array<std::uint64_t, 32> histogram{};
};

// Some of a data set's examples: those of one file.
struct FileExamples {
  std::string name;
  RowForm form = RowForm::text;
  std::uint64_t rows = 0;  // read, bad ones aside
  std::size_t begin = 0, end = 0;  // its examples
};

// The examples of JSONL files, one file after the other. One pass at the start counts and checks every row; after it only a small record a row
// stays in memory and examples are read and encoded again on demand, so files may be larger than memory. Once made
// it may be read from several threads.
class Dataset {
 public:
  // Tokenizer and template (which may be null) must outlive it. Throws DataError naming file and line, also where the
  // file has no row left, and UsageError where preferences are to be split, trained on all or mixed with other rows, and
  // where all rows are texts, which no system message can begin.
  Dataset(const DataFiles& files, const text::Tokenizer& tokenizer, const text::ChatTemplate* chat_template,
          DatasetOptions options);

  RowForm form() const { return files_.front().examples.form; }
  // Their names, a form that all have once: "messages, text".
  std::string form_names() const;
  const DatasetCounts& counts() const { return counts_; }
  std::vector<FileExamples> files() const;
  // FNV-1a of 64 bits over the file's bytes, as checkpoints keep it; of several files over their hashes.
  std::uint64_t hash() const;

  std::size_t size() const { return records_.size(); }
  std::uint32_t tokens(std::size_t example) const { return records_[example].tokens; }
  std::uint32_t trained_tokens(std::size_t example) const { return records_[example].trained; }
  // Of a preference the longer side's tokens, of others all.
  std::uint32_t longest_segment(std::size_t example) const;
  // The line of its file, from 1.
  std::uint64_t row(std::size_t example) const { return records_[example].line; }
  const std::string& file_name(std::size_t example) const { return source_of(example).examples.name; }
  // The number of tokens of each example, in order.
  std::vector<std::uint32_t> lengths() const;

  // Throws DataError where the file has changed since the first pass.
  Example example(std::size_t index) const;
  Batch batch(std::span<const std::uint32_t> examples) const;

 private:
  struct Record {
    std::uint64_t offset;
    std::uint32_t line;
    std::uint32_t checksum;  // of the line
    std::uint32_t begin;  // first token of the row that belongs to the example
    std::uint32_t tokens;
    std::uint32_t trained;
    std::uint32_t rejected_begin;  // see Example
  };

  struct Source {
    File file;
    FileExamples examples;
    bool form_known = false;
    std::uint64_t hash = 0;
  };

  // `files`: how many there are in all.
  void index(Source& source, std::size_t files);
  void index_block(Source& source, const std::vector<Line>& lines);
  // What an encoded line became: an example, or the sentence that says what is wrong with it.
  std::variant<Example, std::string> encode(const Source& source, const Line& line) const;
  void detect_form(Source& source, const std::vector<Line>& lines) const;
  const Source& source_of(std::size_t example) const;
  void add_row(const Example& example, Record record);
  void add_piece(const Example& row, Record record);
  // What of a row is the record's example.
  Example piece_of(const Example& row, const Record& record) const;
  void check_overflow() const;
  void check_forms() const;

  std::vector<Source> files_;
  RowEncoder encoder_;
  DatasetOptions options_;
  DatasetCounts counts_;
  std::string first_over_long_;  // its file and line
  std::vector<Record> records_;
  std::vector<Example> cache_;  // of the first examples, as many as fit
};

}  // namespace nibble::data
