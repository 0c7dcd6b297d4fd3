#include "nibble/io/safetensors.h"

#include <algorithm>
#include <cstring>

#include "nibble/base/error.h"
#include "nibble/base/half.h"

namespace nibble {
namespace {

constexpr std::size_t hashed_piece = std::size_t{4} << 20;

template <typename Convert>
void convert_each_u16(std::span<const std::byte> bytes, std::span<float> out, Convert convert) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + 2 * i, sizeof bits);
    out[i] = convert(bits);
  }
}

}  // namespace

void convert_to_f32(DType dtype, std::span<const std::byte> bytes, std::span<float> out) {
  check(bytes.size() == out.size() * size_of(dtype), "convert_to_f32", "{} bytes were given for {} values of {}.",
        bytes.size(), out.size(), name_of(dtype));
  switch (dtype) {
    case DType::f32:
      if (!bytes.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
      return;
    case DType::f16: return convert_each_u16(bytes, out, f16_to_f32);
    case DType::bf16: return convert_each_u16(bytes, out, bf16_to_f32);
    default: fail("convert_to_f32", "The type is {}; f32, f16 and bf16 can be converted.", name_of(dtype));
  }
}

const TensorInfo* TensorFile::find(std::string_view name) const {
  const auto at = tensors().find(name);
  return at == tensors().end() ? nullptr : &at->second;
}

const TensorInfo& TensorFile::at(std::string_view name) const {
  const auto* tensor = find(name);
  check<DataError>(tensor != nullptr, path().string(), "The file has no tensor {}.", name);
  return *tensor;
}

void SafetensorsFile::read(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const {
  check(offset <= tensor.bytes && out.size() <= tensor.bytes - offset, path().string(),
        "Bytes {} to {} of the tensor {} were asked for, but it has {}.", offset, offset + out.size(), tensor.name,
        tensor.bytes);
  file_.read(tensor.offset + offset, out);
}

std::vector<float> TensorFile::read_as_f32(const TensorInfo& tensor) const {
  const auto dtype = tensor.dtype;
  check<DataError>(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16, path().string(),
                   "The tensor {} is {}; F32, F16 and BF16 can be read here.", tensor.name, tensor.dtype_name);
  std::vector<float> values(tensor.numel());
  if (dtype == DType::f32) {
    read(tensor, 0, std::as_writable_bytes(std::span(values)));
    return values;
  }
  std::vector<std::byte> piece(std::min<std::uint64_t>(hashed_piece, tensor.bytes));
  for (std::uint64_t offset = 0; offset < tensor.bytes; offset += piece.size()) {
    const auto bytes = std::span(piece).first(std::min<std::uint64_t>(piece.size(), tensor.bytes - offset));
    read(tensor, offset, bytes);
    convert_to_f32(*dtype, bytes, std::span(values).subspan(offset / 2, bytes.size() / 2));
  }
  return values;
}

}  // namespace nibble
