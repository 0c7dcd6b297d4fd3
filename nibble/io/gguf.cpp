#include "nibble/io/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "nibble/base/error.h"
#include "nibble/io/gguf_parts.h"

namespace nibble {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian, and read as they are.");

constexpr std::string_view magic = "GGUF";
constexpr std::uint64_t max_gguf_header_bytes = std::uint64_t{512} << 20;
constexpr std::uint64_t max_keys = 1 << 16, max_tensors = 1 << 17;
constexpr std::uint64_t max_name_bytes = 1 << 10;  // of a key or a tensor; ggml itself allows 64 for tensors
constexpr std::uint64_t max_gguf_dimensions = 4;
constexpr std::uint64_t max_list_values = 1 << 24;  // in all lists together: each takes some bytes of memory
constexpr std::uint64_t max_alignment = 1 << 20;
constexpr std::uint64_t default_alignment = 32;

enum class ValueType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

constexpr std::uint64_t least_bytes(ValueType type) {
  switch (type) {
    case ValueType::u8:
    case ValueType::i8:
    case ValueType::boolean: return 1;
    case ValueType::u16:
    case ValueType::i16: return 2;
    case ValueType::u32:
    case ValueType::i32:
    case ValueType::f32: return 4;
    default: return 8;
  }
}

// No bytes but those of whole characters in their shortest form, surrogates excluded (RFC 3629).
bool is_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
    const unsigned lead = byte(at), second = byte(at + 1);
    std::size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) || (lead == 0xF0 && second < 0x90) ||
        (lead == 0xF4 && second > 0x8F)) {
      length = 0;
    }
    if (length == 0) return false;
    for (std::size_t i = 1; i < length; ++i) {
      if ((byte(at + i) & 0xC0u) != 0x80u) return false;
    }
    at += length;
  }
  return true;
}

// Reads the header from front to end, through a window of the file.
class Header {
 public:
  explicit Header(const File& file) : file_(file), end_(std::min(file.size(), max_gguf_header_bytes)) {}

  std::uint64_t position() const { return begin_ + at_; }
  std::uint64_t rest() const { return end_ - position(); }
  std::string where() const { return file_.path().string(); }

  template <typename T>
  T number() {
    T value;
    take(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

  std::string text(std::uint64_t most, std::string_view what) {
    const auto length = number<std::uint64_t>();
    check<DataError>(length <= most && length <= rest(), where(),
                     "{} claims {} bytes at byte {}; at most {} are read, and {} follow.", what, length, position(),
                     most, rest());
    std::string result(length, '\0');
    take(std::as_writable_bytes(std::span(result)));
    check<DataError>(is_utf8(result), where(), "{} that ends at byte {} is not UTF-8.", what, position());
    return result;
  }

  void count_values(const std::string& key, std::uint64_t count) {
    check<DataError>(count <= values_left_, where(),
                     "With the {} values of \"{}\" the file's lists have more than {}, the most that are read.", count,
                     key, max_list_values);
    values_left_ -= count;
  }

  std::string name(std::string_view what) {
    std::string result = text(max_name_bytes, what);
    const bool plain = std::all_of(result.begin(), result.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
    check<DataError>(!result.empty() && plain, where(),
                     "{} that ends at byte {} is empty or has characters that are not plain ASCII.", what, position());
    return result;
  }

 private:
  void take(std::span<std::byte> out) {
    check<DataError>(out.size() <= rest(), where(), "The header goes on beyond byte {}, where {}.", end_,
                     end_ < file_.size() ? "reading of headers ends" : "the file ends; was the download cut short?");
    while (!out.empty()) {
      if (at_ == window_.size()) fill();
      const std::size_t count = std::min(out.size(), window_.size() - at_);
      std::memcpy(out.data(), window_.data() + at_, count);
      at_ += count;
      out = out.subspan(count);
    }
  }

  void fill() {
    begin_ += window_.size();
    at_ = 0;
    window_.resize(std::min<std::uint64_t>(std::uint64_t{1} << 20, end_ - begin_));
    file_.read(begin_, window_);
  }

  const File& file_;
  std::uint64_t end_;
  std::uint64_t begin_ = 0;  // of the window
  std::size_t at_ = 0;       // in the window
  std::uint64_t values_left_ = max_list_values;
  std::vector<std::byte> window_;
};

ValueType read_type(Header& header, const std::string& key) {
  const auto number = header.number<std::uint32_t>();
  check<DataError>(number <= static_cast<std::uint32_t>(ValueType::f64), header.where(),
                   "The key \"{}\" has a value of type {}; types 0 to 12 are defined.", key, number);
  return static_cast<ValueType>(number);
}

Json read_value(Header& header, const std::string& key, ValueType type) {
  switch (type) {
    case ValueType::u8: return header.number<std::uint8_t>();
    case ValueType::i8: return header.number<std::int8_t>();
    case ValueType::u16: return header.number<std::uint16_t>();
    case ValueType::i16: return header.number<std::int16_t>();
    case ValueType::u32: return header.number<std::uint32_t>();
    case ValueType::i32: return header.number<std::int32_t>();
    case ValueType::f32: return header.number<float>();
    case ValueType::boolean: return header.number<std::uint8_t>() != 0;
    case ValueType::string: return header.text(max_gguf_header_bytes, fmt::format("The value of \"{}\"", key));
    case ValueType::u64: return header.number<std::uint64_t>();
    case ValueType::i64: return header.number<std::int64_t>();
    case ValueType::f64: return header.number<double>();
    case ValueType::array: break;
  }
  const ValueType of = read_type(header, key);
  const auto count = header.number<std::uint64_t>();
  check<DataError>(of != ValueType::array, header.where(), "The key \"{}\" is a list of lists, which are not read.",
                   key);
  check<DataError>(count <= header.rest() / least_bytes(of), header.where(),
                   "The key \"{}\" claims a list of {} values, but only {} bytes follow.", key, count, header.rest());
  header.count_values(key, count);
  Json list = Json::array();
  list.get_ref<Json::array_t&>().reserve(count);
  for (std::uint64_t i = 0; i < count; ++i) list.push_back(read_value(header, key, of));
  return list;
}

Json read_metadata(Header& header, std::uint64_t count) {
  Json metadata = Json::object();
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::string key = header.name("A key");
    check<DataError>(!metadata.contains(key), header.where(), "The key \"{}\" comes twice.", key);
    metadata[key] = read_value(header, key, read_type(header, key));
  }
  return metadata;
}

GgufTensor read_tensor(Header& header) {
  GgufTensor tensor{.name = header.name("The name of a tensor")};
  const auto dimensions = header.number<std::uint32_t>();
  check<DataError>(dimensions >= 1 && dimensions <= max_gguf_dimensions, header.where(),
                   "The tensor {} has {} dimensions; 1 to {} are read.", tensor.name, dimensions, max_gguf_dimensions);
  std::uint64_t numel = 1;
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto size = header.number<std::uint64_t>();
    check<DataError>(
        size > 0 && size <= INT64_MAX && !__builtin_mul_overflow(numel, size, &numel) && numel <= INT64_MAX / 8,
        header.where(), "The tensor {} has a size of {}, which is 0 or makes more values than can be counted.",
        tensor.name, size);
    tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(size));
  }
  tensor.type = header.number<std::uint32_t>();
  const GgmlTypeInfo* info = find_ggml_type(tensor.type);
  check<DataError>(info != nullptr, header.where(), "The tensor {} is of the type number {}, which is not known.",
                   tensor.name, tensor.type);
  check<DataError>(tensor.shape.back() % info->values == 0, header.where(),
                   "The tensor {} has rows of {} values, which are no whole blocks of {} ({}).", tensor.name,
                   tensor.shape.back(), info->values, info->name);
  tensor.bytes = numel / info->values * info->bytes;
  tensor.offset = header.number<std::uint64_t>();
  return tensor;
}

std::uint64_t read_alignment(const Json& metadata, const std::string& where) {
  constexpr std::string_view key = "general.alignment";
  const auto alignment =
      static_cast<std::uint64_t>(JsonObject(metadata, where).integer(key, {1, max_alignment}, default_alignment));
  check<DataError>(std::has_single_bit(alignment), where, "The key \"{}\" is {}; it must be a power of two.", key,
                   alignment);
  return alignment;
}

// Offsets become those in the file.
void place_tensors(std::vector<GgufTensor>& tensors, std::uint64_t data, std::uint64_t alignment, const File& file) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
  std::uint64_t end = 0;
  const std::uint64_t room = file.size() >= data ? file.size() - data : 0;
  for (GgufTensor& tensor : tensors) {
    check<DataError>(tensor.offset % alignment == 0, file.path().string(),
                     "The tensor {} begins at {} of the data, which is no multiple of {}.", tensor.name, tensor.offset,
                     alignment);
    check<DataError>(tensor.offset <= room && tensor.bytes <= room - tensor.offset, file.path().string(),
                     "The tensor {} has {} bytes from {} of the data on, but there are {}; was the download cut short?",
                     tensor.name, tensor.bytes, tensor.offset, room);
    check<DataError>(tensor.offset >= end, file.path().string(),
                     "The tensor {} overlaps the one before it: it begins at {}, not after {}.", tensor.name,
                     tensor.offset, end);
    end = tensor.offset + tensor.bytes;
    tensor.offset += data;
  }
}

void check_start(Header& header) {
  std::string start(magic.size(), '\0');
  for (char& c : start) c = header.number<char>();
  check<DataError>(start == magic, header.where(), "The file does not begin with \"{}\"; it is no GGUF file.", magic);
  const auto version = header.number<std::uint32_t>();
  check<DataError>(version == 2 || version == 3, header.where(),
                   "The file is of GGUF version {}{}; little-endian files of versions 2 and 3 are read.", version,
                   version == std::uint32_t{3} << 24 || version == std::uint32_t{2} << 24 ? " (big-endian)" : "");
}

bool has_magic(const fs::path& path) {
  try {
    const File file(path);
    std::string start(magic.size(), '\0');
    if (file.size() < start.size()) return false;
    file.read(0, std::as_writable_bytes(std::span(start)));
    return start == magic;
  } catch (const DataError&) {
    return false;
  }
}

}  // namespace

Json GgufFile::add_part(File opened) {
  const std::size_t part = files_.size();
  const File& file = files_.emplace_back(std::move(opened));
  const std::string where = file.path().string();
  Header header(file);
  check_start(header);
  const auto tensors = header.number<std::uint64_t>(), keys = header.number<std::uint64_t>();
  check<DataError>(tensors <= max_tensors && keys <= max_keys, where, "The file claims {} tensors and {} keys; at most {} and {} are read.",
                   tensors, keys, max_tensors, max_keys);
  Json metadata = read_metadata(header, keys);
  std::vector<GgufTensor> in_order;
  for (std::uint64_t i = 0; i < tensors; ++i) in_order.push_back(read_tensor(header));
  const auto alignment = read_alignment(metadata, where);
  place_tensors(in_order, (header.position() + alignment - 1) / alignment * alignment, alignment, file);
  for (GgufTensor& tensor : in_order) {
    const std::string name = tensor.name;
    tensor.part = part;
    check<DataError>(tensors_.emplace(name, std::move(tensor)).second, where, "The tensor {} comes twice.", name);
  }
  return metadata;
}

GgufFile::GgufFile(const fs::path& path) {
  metadata_ = add_part(File(gguf_first_part(path)));
  const auto count = JsonObject(metadata_, this->path().string()).integer("split.count", {0, UINT16_MAX}, 0);
  if (count > 1) add_other_parts(count);
}

void GgufFile::add_other_parts(std::int64_t count) {
  check<DataError>(count <= max_gguf_parts, path().string(), "The file is one of {} parts; at most {} are read.", count, max_gguf_parts);
  const GgufPartName name = gguf_part_name(path(), metadata_, count);
  files_.reserve(static_cast<std::size_t>(count));
  for (std::int64_t number = 2; number <= count; ++number) {
    const fs::path part = name.of(number);
    check<DataError>(path_exists(part), part.string(), "Part {} of {} is missing; all of them have to lie beside the first.", number, count);
    const Json metadata = add_part(File(part));
    const JsonObject keys(metadata, part.string());
    const auto own = keys.integer("split.no", {0, UINT16_MAX}), parts = keys.integer("split.count", {0, UINT16_MAX});
    check<DataError>(own == number - 1 && parts == count, part.string(), "The file says that it is part {} of {}; part {} of {} belongs here.",
                     own + 1, parts, number, count);
  }
  const auto tensors = JsonObject(metadata_, path().string()).integer("split.tensors.count", {0, INT32_MAX}, static_cast<std::int64_t>(tensors_.size()));
  check<DataError>(static_cast<std::size_t>(tensors) == tensors_.size(), path().string(),
                   "The parts have {} tensors together; the first says that they have {}.", tensors_.size(), tensors);
}

void GgufFile::read(const GgufTensor& tensor, std::uint64_t offset, std::span<std::byte> out) const {
  check(offset <= tensor.bytes && out.size() <= tensor.bytes - offset, path().string(),
        "Bytes {} to {} of the tensor {} were asked for, but it has {}.", offset, offset + out.size(), tensor.name,
        tensor.bytes);
  files_[tensor.part].read(tensor.offset + offset, out);
}

bool is_gguf(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    const bool other = path_exists(path / "model.safetensors") || path_exists(path / "model.safetensors.index.json");
    return !other && !gguf_files_in(path).empty();
  }
  return fs::is_regular_file(path, ignored) && (path.extension() == ".gguf" || has_magic(path));
}

}  // namespace nibble
