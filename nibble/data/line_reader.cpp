#include "nibble/data/line_reader.h"

#include <algorithm>

#include "nibble/base/error.h"

namespace nibble::data {
namespace {

constexpr std::string_view in_line_reader = "data";
constexpr std::size_t line_block_bytes = std::size_t{1} << 20;
constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";

std::string read_block(const File& file, std::uint64_t offset, std::size_t bytes) {
  std::string block(std::min<std::uint64_t>(bytes, file.size() - offset), '\0');
  file.read(offset, std::as_writable_bytes(std::span(block)));
  return block;
}

void drop_carriage_return(std::string& text) {
  if (!text.empty() && text.back() == '\r') text.pop_back();
}

}  // namespace

bool LineReader::fill() {
  if (buffer_end_ >= file_.size()) return false;
  buffer_ = read_block(file_, buffer_end_, line_block_bytes);
  hash_.add(buffer_);
  buffer_end_ += buffer_.size();
  at_ = 0;
  return true;
}

bool LineReader::next(Line& line) {
  if (at_ == buffer_.size() && !fill()) return false;
  line.offset = buffer_end_ - (buffer_.size() - at_);
  line.number = ++number_;
  line.text.clear();
  while (true) {
    const std::size_t end = std::min(buffer_.find('\n', at_), buffer_.size());
    line.text.append(buffer_, at_, end - at_);
    check<DataError>(line.text.size() <= max_line_bytes, in_line_reader, "{}, line {}: The line is longer than {} bytes.", name_, line.number,
                     max_line_bytes);
    at_ = std::min(end + 1, buffer_.size());
    if (end < buffer_.size() || !fill()) break;
  }
  drop_carriage_return(line.text);
  if (line.offset == 0 && line.text.starts_with(byte_order_mark)) {
    line.text.erase(0, byte_order_mark.size());
    line.offset = byte_order_mark.size();
  }
  return true;
}

std::string LineReader::read_at(const File& file, std::uint64_t offset) {
  std::string text;
  for (std::size_t bytes = std::size_t{16} << 10; offset < file.size(); bytes = line_block_bytes) {
    const std::string block = read_block(file, offset, bytes);
    const std::size_t end = block.find('\n');
    text.append(block, 0, end);
    if (end != block.npos || text.size() > max_line_bytes) break;
    offset += block.size();
  }
  drop_carriage_return(text);
  return text;
}

}  // namespace nibble::data
