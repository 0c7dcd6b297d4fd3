#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/fnv.h"
#include "nibble/io/file.h"

namespace nibble::data {

struct Line {
  std::uint64_t offset = 0;  // of its first byte in the file
  std::uint64_t number = 0;  // from 1
  std::string text;          // without the line end (\n or \r\n)
};

// No line of a data file may be longer.
constexpr std::size_t max_line_bytes = std::size_t{32} << 20;

// Reads a file line by line in one pass, and any line again by its offset. Throws DataError naming file and line.
class LineReader {
 public:
  // `name` is the file's in errors.
  LineReader(const File& file, std::string name) : file_(file), name_(std::move(name)) {}

  // False at the end of the file. Takes a byte order mark off the first line.
  bool next(Line& line);
  // Of all bytes read so far.
  std::uint64_t hash() const { return hash_.value(); }

  static std::string read_at(const File& file, std::uint64_t offset);

 private:
  bool fill();

  const File& file_;
  std::string name_;
  Fnv1a64 hash_;
  std::string buffer_;
  std::size_t at_ = 0;           // in buffer_
  std::uint64_t buffer_end_ = 0;  // offset in the file
  std::uint64_t number_ = 0;
};

}  // namespace nibble::data
