#include <algorithm>
#include <nlohmann/json.hpp>

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/io/safetensors.h"
#include "nibble/io/safetensors_types.h"

namespace nibble {
namespace {

std::ptrdiff_t file_order(DType dtype) {
  const auto* at =
      std::find_if(file_dtypes.begin(), file_dtypes.end(), [&](const auto& d) { return d.dtype == dtype; });
  return at - file_dtypes.begin();
}

std::uint64_t checked_bytes(const TensorSpec& tensor) {
  std::uint64_t bytes = size_of(tensor.dtype);
  for (const auto size : tensor.shape) {
    check(size >= 0 && !__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(size), &bytes), "write_safetensors",
          "The tensor {} has the shape {}, which cannot be written.", tensor.name, to_string(tensor.shape));
  }
  return bytes;
}

std::string quoted(const std::string& text) { return nlohmann::json(text).dump(); }

std::string header_of(const std::vector<TensorSpec>& tensors, const SafetensorsWriter::Metadata& metadata) {
  std::vector<std::string> entries;
  if (!metadata.empty()) {
    std::vector<std::string> pairs;
    for (const auto& [key, value] : metadata) pairs.push_back(quoted(key) + ":" + quoted(value));
    entries.push_back(fmt::format("\"__metadata__\":{{{}}}", fmt::join(pairs, ",")));
  }
  std::uint64_t begin = 0;
  for (const auto& tensor : tensors) {
    const auto end = begin + checked_bytes(tensor);
    entries.push_back(fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                                  quoted(tensor.name),
                                  file_dtypes[static_cast<std::size_t>(file_order(tensor.dtype))].name,
                                  fmt::join(tensor.shape, ","), begin, end));
    begin = end;
  }
  std::string header = fmt::format("{{{}}}", fmt::join(entries, ","));
  header.append((8 - header.size() % 8) % 8, ' ');
  return header;
}

}  // namespace

struct SafetensorsWriter::Target {
  explicit Target(const fs::path& path) : file(path) {}
  AtomicFile file;
};

SafetensorsWriter::SafetensorsWriter(const fs::path& path, std::vector<TensorSpec> tensors, const Metadata& metadata)
    : tensors_(std::move(tensors)) {
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorSpec& a, const TensorSpec& b) {
    const auto order_a = file_order(a.dtype), order_b = file_order(b.dtype);
    return order_a != order_b ? order_a > order_b : a.name < b.name;
  });
  const std::string header = header_of(tensors_, metadata);
  const std::uint64_t length = header.size();
  for (const auto& tensor : tensors_) {
    const std::uint64_t begin = sizeof length + length + missing_bytes_, bytes = checked_bytes(tensor);
    check(places_.try_emplace(tensor.name, Place{begin, begin + bytes}).second && tensor.name != "__metadata__", "write_safetensors",
          "The tensor name {} is reserved or given twice.", tensor.name);
    missing_bytes_ += bytes;
  }
  target_ = std::make_unique<Target>(path);
  target_->file.write(std::as_bytes(std::span(&length, 1)));
  target_->file.write(std::as_bytes(std::span(header)));
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::append(std::span<const std::byte> bytes) {
  check(bytes.size() <= missing_bytes_, "write_safetensors", "{} bytes were appended, but only {} are still missing.",
        bytes.size(), missing_bytes_);
  target_->file.write(bytes);
  missing_bytes_ -= bytes.size();
}

void SafetensorsWriter::append(std::string_view tensor, std::span<const std::byte> bytes) {
  const auto place = places_.find(tensor);
  check(place != places_.end(), "write_safetensors", "The file has no tensor {} to append to.", tensor);
  Place& at = place->second;
  check(bytes.size() <= at.end - at.next, "write_safetensors", "{} bytes were appended to {}, but only {} are still missing.",
        bytes.size(), tensor, at.end - at.next);
  target_->file.write_at(at.next, bytes);
  at.next += bytes.size();
  missing_bytes_ -= bytes.size();
}

void SafetensorsWriter::finish() {
  check(missing_bytes_ == 0, "write_safetensors", "The file was finished with {} bytes still missing.", missing_bytes_);
  target_->file.commit();
}

}  // namespace nibble
