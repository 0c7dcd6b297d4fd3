#include "nibble/data/open_rows.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <system_error>

#include "nibble/base/error.h"
#include "nibble/data/csv.h"
#include "nibble/io/unpack.h"

namespace nibble::data {
namespace {

constexpr std::size_t row_block_bytes = std::size_t{256} << 10;
constexpr std::string_view standard_input = "standard input";

// The first bytes of a stream, up to `count`, and the stream with them put back.
struct Opened {
  std::string head;
  ByteReader all;
};

Opened look_at(ByteReader in, std::size_t count) {
  std::string head(count, '\0');
  std::size_t got = 0;
  while (got < count) {
    const std::size_t more = in(std::span(head).subspan(got));
    if (more == 0) break;
    got += more;
  }
  head.resize(got);
  auto again = [in = std::move(in), head, at = std::size_t{0}](std::span<char> out) mutable {
    if (at == head.size()) return in(out);
    const std::size_t bytes = head.copy(out.data(), out.size(), at);
    at += bytes;
    return bytes;
  };
  return {.head = head, .all = std::move(again)};
}

ByteReader reader_of(std::shared_ptr<const File> file) {
  return [file = std::move(file), at = std::uint64_t{0}](std::span<char> out) mutable {
    const std::size_t bytes = std::min<std::uint64_t>(out.size(), file->size() - at);
    file->read(at, std::as_writable_bytes(out.first(bytes)));
    at += bytes;
    return bytes;
  };
}

// Of a table by its name, what stands between its fields.
std::optional<char> separator_of(fs::path name) {
  const auto extension = [&] {
    std::string text = name.extension().string();
    for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    return text;
  };
  const std::string outer = extension();
  if (outer == ".gz" || outer == ".gzip" || outer == ".zst" || outer == ".zstd") name.replace_extension();
  const std::string inner = extension();
  if (inner == ".csv") return ',';
  if (inner == ".tsv" || inner == ".tab") return '\t';
  return std::nullopt;
}

// Of a stream without a name.
std::optional<char> separator_in(std::string_view head) {
  if (head.starts_with("\xef\xbb\xbf")) head.remove_prefix(3);
  head.remove_prefix(std::min(head.find_first_not_of(" \t\r\n"), head.size()));
  if (head.starts_with('{') || head.starts_with('[')) return std::nullopt;
  const std::string_view line = head.substr(0, head.find('\n'));
  if (line.find('\t') != line.npos) return '\t';
  return line.find(',') != line.npos ? std::optional(',') : std::nullopt;
}

constexpr std::size_t head_bytes = 16;  // enough to tell what is refused

// What other programs take for rows and what is none here, with what makes rows of it.
void refuse_others(std::string_view head, const fs::path& name, bool table) {
  check<DataError>(!head.starts_with("PAR1"), name.string(),
                   "This is a Parquet file, which is not read; make JSON Lines of it: duckdb -c \"COPY (FROM '{}') TO 'rows.jsonl' "
                   "(FORMAT json)\", or in Python: import pandas; pandas.read_parquet('{}').to_json('rows.jsonl', orient='records', "
                   "lines=True).",
                   name.string(), name.string());
  const bool bzip2 = head.starts_with("BZh") && head.substr(4).starts_with("1AY&SY");
  const char* packing = head.starts_with("\xfd" "7zXZ") ? "xz" : bzip2 ? "bzip2" : head.starts_with("PK\x03\x04") ? "zip" : nullptr;
  check<DataError>(packing == nullptr, name.string(), "This is packed by {}, which is not read; gzip, zstd and plain files are.",
                   packing != nullptr ? packing : "");
  if (head.starts_with("\xef\xbb\xbf")) head.remove_prefix(3);
  head.remove_prefix(std::min(head.find_first_not_of(" \t\r\n"), head.size()));
  check<DataError>(table || !head.starts_with('['), name.string(),
                   "This is one JSON array, and rows are objects, one a line; make JSON Lines of it: jq -c '.[]' '{}' >rows.jsonl, or in "
                   "Python: import pandas; pandas.read_json('{}').to_json('rows.jsonl', orient='records', lines=True).",
                   name.string(), name.string());
}

RowText spooled(const ByteReader& text, std::optional<char> separator, const fs::path& name) {
  SpoolFile file(name);
  std::string waiting;
  std::uint64_t total = 0;
  const auto put = [&](std::string_view bytes) {
    total += bytes.size();
    check<DataError>(total <= max_unpacked_bytes, name.string(),
                     "It holds more than {} bytes, the most that is taken into a temporary file.", max_unpacked_bytes);
    waiting += bytes;
    if (waiting.size() < row_block_bytes) return;
    file.write(waiting);
    waiting.clear();
  };
  if (separator) {
    csv_to_rows(text, *separator, name, put);
  } else {
    std::string block(row_block_bytes, '\0');
    while (const std::size_t got = text(block)) put(std::string_view(block).substr(0, got));
  }
  file.write(waiting);
  return {.file = file.open(), .name = name.string()};
}

RowText open_stream(ByteReader in, const fs::path& name, std::optional<char> separator, bool named) {
  Opened packed = look_at(std::move(in), head_bytes);
  refuse_others(packed.head, name, separator.has_value());
  const Packing packing = packing_of(packed.head);
  Opened text = look_at(unpacked(std::move(packed.all), packing, name), named ? head_bytes : 4096);
  refuse_others(text.head, name, separator.has_value());
  return spooled(text.all, named ? separator : separator_in(text.head), name);
}

}  // namespace

RowText open_rows(const fs::path& path) {
  if (path == "-") return open_stream(nibble::reader_of(STDIN_FILENO, standard_input), standard_input, std::nullopt, false);
  const auto separator = separator_of(path);
  std::error_code ignored;
  if (fs::is_fifo(path, ignored)) {
    const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (fd.get() < 0) fail_with_errno(path, "open this file");
    return open_stream(nibble::reader_of(fd.get(), path), path, separator, path.has_extension());
  }
  auto file = std::make_shared<File>(path);
  const std::string head = look_at(reader_of(file), head_bytes).head;
  refuse_others(head, path, separator.has_value());
  if (packing_of(head) == Packing::none && !separator) return {.file = std::move(*file), .name = path.string()};
  return open_stream(reader_of(file), path, separator, true);
}

}  // namespace nibble::data
