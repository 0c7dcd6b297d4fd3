#include <algorithm>
#include <bit>
#include <cstring>

#include "nibble/base/error.h"
#include "nibble/io/json.h"
#include "nibble/io/safetensors.h"
#include "nibble/io/safetensors_types.h"

namespace nibble {
namespace {

static_assert(std::endian::native == std::endian::little, "Safetensors files are little-endian, and read as they are.");

constexpr std::uint64_t length_bytes = 8;
constexpr std::uint64_t max_header_bytes = 100'000'000;  // the official library's own cap
constexpr std::size_t max_dimensions = 32;

const FileDType& find_dtype(const JsonObject& entry) {
  const std::string name = entry.string("dtype");
  const auto* at = std::find_if(file_dtypes.begin(), file_dtypes.end(), [&](const auto& d) { return d.name == name; });
  if (at == file_dtypes.end()) entry.fail_key("dtype", "a type that safetensors defines");
  return *at;
}

// The product of the shape and `bits`, as bytes.
std::uint64_t checked_bytes(const JsonObject& entry, const Shape& shape, std::size_t bits) {
  std::uint64_t product = bits;
  for (const auto size : shape) {
    if (__builtin_mul_overflow(product, static_cast<std::uint64_t>(size), &product)) {
      fail<DataError>(entry.origin(), "The shape {} has more elements than 64 bits can count.", to_string(shape));
    }
  }
  check<DataError>(product % 8 == 0, entry.origin(), "The shape {} does not fill whole bytes.", to_string(shape));
  return product / 8;
}

TensorInfo read_entry(const std::string& name, const Json& value, const fs::path& path, std::uint64_t data_bytes) {
  const JsonObject entry(value, fmt::format("{}: {}", path.string(), name));
  for (const auto key : {"shape", "data_offsets"}) {
    if (!entry.has(key) || !entry.json()[key].is_array()) entry.fail_key(key, "a list of integers");
  }
  TensorInfo tensor{.name = name, .dtype_name = {}, .dtype = {}, .shape = entry.integers("shape", {})};
  const auto& dtype = find_dtype(entry);
  tensor.dtype_name = dtype.name;
  tensor.dtype = dtype.dtype;
  check<DataError>(tensor.shape.size() <= max_dimensions, entry.origin(),
                   "The tensor has {} dimensions; at most {} are read.", tensor.shape.size(), max_dimensions);
  const auto offsets = entry.integers("data_offsets", {});
  check<DataError>(offsets.size() == 2, entry.origin(), "\"data_offsets\" must be two integers; found {}.",
                   offsets.size());
  const auto begin = static_cast<std::uint64_t>(offsets[0]);
  const auto end = static_cast<std::uint64_t>(offsets[1]);
  check<DataError>(begin <= end && end <= data_bytes, entry.origin(),
                   "The data offsets [{}, {}] must rise and stay within the {} bytes of data that the file holds.",
                   begin, end, data_bytes);
  tensor.bytes = checked_bytes(entry, tensor.shape, dtype.bits);
  check<DataError>(tensor.bytes == end - begin, entry.origin(),
                   "The data offsets [{}, {}] span {} bytes, but shape {} of {} needs {}.", begin, end, end - begin,
                   to_string(tensor.shape), dtype.name, tensor.bytes);
  tensor.offset = begin;
  return tensor;
}

std::map<std::string, std::string> read_metadata(const Json& value, const fs::path& path) {
  std::map<std::string, std::string> metadata;
  const JsonObject object(value, path.string() + ": __metadata__");
  for (const auto& [key, text] : value.items()) metadata[key] = object.string(key);
  return metadata;
}

// The format wants the tensors to tile the data: a gap could hide bytes, an overlap would read some twice.
void check_tiling(const TensorMap& tensors, const fs::path& path, std::uint64_t data_bytes) {
  std::vector<const TensorInfo*> in_order;
  for (const auto& [name, tensor] : tensors) in_order.push_back(&tensor);
  std::sort(in_order.begin(), in_order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->offset, a->bytes) < std::pair(b->offset, b->bytes);
  });
  std::uint64_t end = 0;
  for (const auto* tensor : in_order) {
    check<DataError>(tensor->offset >= end, path.string(),
                     "The tensor {} overlaps the one before it: it starts at {}, not {}.", tensor->name, tensor->offset,
                     end);
    check<DataError>(tensor->offset == end, path.string(),
                     "There is a gap before the tensor {}: it starts at {}, not {}.", tensor->name, tensor->offset,
                     end);
    end += tensor->bytes;
  }
  check<DataError>(end == data_bytes, path.string(), "The tensors end at byte {} of the data, which has {}.", end,
                   data_bytes);
}

}  // namespace

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::uint64_t TensorInfo::numel() const {
  std::uint64_t product = 1;
  for (const auto size : shape) product *= static_cast<std::uint64_t>(size);
  return product;
}

SafetensorsHeader read_safetensors_header(const File& file) {
  const auto& path = file.path();
  check<DataError>(file.size() >= length_bytes, path.string(),
                   "The file has {} bytes; a safetensors file has at least 8. Was the download cut short?",
                   file.size());
  std::uint64_t header_bytes = 0;
  file.read(0, std::as_writable_bytes(std::span(&header_bytes, 1)));
  const auto rest = file.size() - length_bytes;
  check<DataError>(header_bytes <= max_header_bytes, path.string(),
                   "The header claims {} bytes; at most {} are allowed. Is this a safetensors file?", header_bytes,
                   max_header_bytes);
  check<DataError>(header_bytes <= rest, path.string(),
                   "The header claims {} bytes, but only {} follow. Was the download cut short?", header_bytes, rest);
  std::string text(header_bytes, '\0');
  file.read(length_bytes, std::as_writable_bytes(std::span(text)));
  check<DataError>(text.starts_with('{'), path.string(), "The header must start with an open brace.");

  const auto json =
      parse_json(text, path.string(), {.max_bytes = max_header_bytes, .max_depth = 4, .unique_keys = true});
  const auto data_bytes = rest - header_bytes;
  SafetensorsHeader header;
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      header.metadata = read_metadata(value, path);
    } else {
      header.tensors.emplace(name, read_entry(name, value, path, data_bytes));
    }
  }
  check_tiling(header.tensors, path, data_bytes);
  for (auto& [name, tensor] : header.tensors) tensor.offset += length_bytes + header_bytes;
  return header;
}

}  // namespace nibble
