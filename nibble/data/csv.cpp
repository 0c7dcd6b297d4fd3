#include "nibble/data/csv.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/data/line_reader.h"
#include "nibble/data/row.h"
#include "nibble/text/utf8.h"

namespace nibble::data {
namespace {

constexpr std::size_t max_columns = 4096;
constexpr std::size_t csv_block_bytes = std::size_t{256} << 10;
constexpr std::string_view csv_byte_order_mark = "\xef\xbb\xbf";

bool is_utf8(std::string_view text) { return text::valid_utf8_prefix(text) == text.size(); }

struct Record {
  std::vector<std::string> fields;
  std::uint64_t line = 0;   // that it begins in, from 1
  std::uint64_t lines = 0;  // that it reaches over
  std::string_view fault;   // a sentence; empty where there is none
};

class CsvReader {
 public:
  CsvReader(const ByteReader& in, char separator, const fs::path& name) : in_(in), separator_(separator), name_(name.string()) {
    block_.resize(csv_byte_order_mark.size());
    while (end_ < block_.size()) {
      const std::size_t got = in_(std::span(block_).subspan(end_));
      if (got == 0) break;
      end_ += got;
    }
    if (std::string_view(block_.data(), end_) == csv_byte_order_mark) at_ = end_;
  }

  // The next record; empty lines are passed over. False at the end.
  bool next(Record& record) {
    do {
      if (!read(record)) return false;
    } while (record.fields.size() == 1 && record.fields[0].empty() && !quoted_);
    return true;
  }

  template <typename... Args>
  [[noreturn]] void fail_at(std::uint64_t line, fmt::format_string<Args...> sentence, Args&&... args) const {
    fail<DataError>("data", "{}, line {}: {}", name_, line, fmt::format(sentence, std::forward<Args>(args)...));
  }

 private:
  static constexpr int none = -1;

  int peek() {
    if (at_ == end_) {
      block_.resize(csv_block_bytes);
      at_ = 0;
      end_ = in_(block_);
    }
    return at_ == end_ ? none : static_cast<unsigned char>(block_[at_]);
  }

  bool read(Record& record) {
    record = {.fields = {}, .line = line_ + 1, .lines = 0, .fault = {}};
    quoted_ = false;
    bytes_ = 0;
    if (peek() == none) return false;
    while (true) {
      record.fields.emplace_back();
      if (record.fields.size() > max_columns) fail_at(record.line, "The record has more than {} fields.", max_columns);
      if (peek() == '"') read_quoted(record);
      read_plain(record);
      const int c = peek();
      if (c == static_cast<unsigned char>(separator_)) {
        ++at_;
        continue;
      }
      if (c == '\n') ++at_;
      ++line_;
      record.lines = line_ - (record.line - 1);
      return true;
    }
  }

  void put(Record& record, char c) {
    if (++bytes_ > max_line_bytes) fail_at(record.line, "The record is longer than {} bytes.", max_line_bytes);
    record.fields.back() += c;
  }

  void read_quoted(Record& record) {
    const std::uint64_t begin = line_ + 1;
    quoted_ = true;
    ++at_;
    while (true) {
      const int c = peek();
      if (c == none) fail_at(begin, "A quote opens a field here and none closes it.");
      ++at_;
      if (c == '"') {
        if (peek() != '"') break;
        ++at_;
      }
      if (c == '\n') ++line_;
      put(record, static_cast<char>(c));
    }
    if (peek() == '\r') return;  // read_plain sees whether the line ends
    if (const int c = peek(); c != none && c != '\n' && c != static_cast<unsigned char>(separator_)) {
      record.fault = "Text follows the quote that closes a field.";
    }
  }

  // Up to a separator or the end of the line.
  void read_plain(Record& record) {
    for (int c = peek(); c != none && c != '\n' && c != static_cast<unsigned char>(separator_); c = peek()) {
      ++at_;
      if (c == '\r' && (peek() == '\n' || peek() == none)) return;
      if (c == '\r') record.fault = "A carriage return stands in it without a line feed.";
      put(record, static_cast<char>(c));
    }
  }

  const ByteReader& in_;
  char separator_;
  std::string name_;
  std::vector<char> block_;
  std::size_t at_ = 0, end_ = 0;
  std::uint64_t line_ = 0;   // lines that have ended
  std::size_t bytes_ = 0;    // of the record
  bool quoted_ = false;      // the record has a quoted field
};

std::vector<std::string> read_header(CsvReader& reader, Record& record) {
  if (!reader.next(record)) reader.fail_at(1, "The file is empty; a header with the names of the columns is needed.");
  if (!record.fault.empty()) reader.fail_at(record.line, "The header cannot be read. {}", record.fault);
  for (std::size_t i = 0; i < record.fields.size(); ++i) {
    const std::string& name = record.fields[i];
    if (name.empty()) reader.fail_at(record.line, "Column {} of the header has no name.", i + 1);
    if (!is_utf8(name)) reader.fail_at(record.line, "The name of column {} is not UTF-8.", i + 1);
    if (std::find(record.fields.begin(), record.fields.begin() + static_cast<std::ptrdiff_t>(i), name) !=
        record.fields.begin() + static_cast<std::ptrdiff_t>(i)) {
      reader.fail_at(record.line, "The header names the column \"{}\" twice.", name);
    }
  }
  return record.fields;
}

std::string row_of(const Record& record, const std::vector<std::string>& names) {
  const auto bad = [](std::string_view sentence) { return bad_row_mark + std::string(sentence); };
  if (!record.fault.empty()) return bad(record.fault);
  if (record.fields.size() != names.size()) {
    return bad(fmt::format("The record has {} fields, the header {}.", record.fields.size(), names.size()));
  }
  OrderedJson row = OrderedJson::object();
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (!is_utf8(record.fields[i])) return bad(fmt::format("The field of the column \"{}\" is not UTF-8.", names[i]));
    row[names[i]] = record.fields[i];
  }
  return row.dump();
}

}  // namespace

void csv_to_rows(const ByteReader& in, char separator, const fs::path& name, const std::function<void(std::string_view)>& out) {
  CsvReader reader(in, separator, name);
  Record record;
  const auto names = read_header(reader, record);
  std::uint64_t written = 0;  // lines
  const auto reach = [&](std::uint64_t line) {
    out(std::string(line - written, '\n'));
    written = line;
  };
  reach(record.line + record.lines - 1);
  while (reader.next(record)) {
    reach(record.line - 1);
    const std::string row = row_of(record, names);
    if (row.size() > max_line_bytes) reader.fail_at(record.line, "The record takes more than {} bytes.", max_line_bytes);
    out(row);
    out("\n");
    written = record.line;
  }
}

}  // namespace nibble::data
