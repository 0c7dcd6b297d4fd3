#include "nibble/weights/decoded_tensor.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace nibble {
namespace {

constexpr std::uint64_t piece_values = 4096;  // that are decoded at a time

// One bit of sign, the exponent and the mantissa of a format of the OCP (8-bit Floating Point Specification, 2023): E4M3 has no infinities
// and one NaN, E5M2 is cut from IEEE's halves.
template <int mantissa_bits>
constexpr float from_f8(std::uint8_t bits) {
  constexpr int exponent_bits = 7 - mantissa_bits, bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
  const int exponent = bits >> mantissa_bits & top, mantissa = bits & ((1 << mantissa_bits) - 1);
  constexpr int last = (1 << mantissa_bits) - 1;
  if (exponent == top && (mantissa_bits == 3 ? mantissa == last : mantissa != 0)) return std::numeric_limits<float>::quiet_NaN();
  const bool infinite = mantissa_bits == 2 && exponent == top;
  float value = infinite ? std::numeric_limits<float>::infinity() : static_cast<float>(exponent == 0 ? mantissa : mantissa + last + 1);
  for (int i = std::max(exponent, 1); i < bias + mantissa_bits; ++i) value /= 2;
  for (int i = std::max(exponent, 1); i > bias + mantissa_bits; --i) value *= 2;
  return bits >> 7 ? -value : value;
}

using F8Table = std::array<float, 256>;

template <int mantissa_bits>
constexpr F8Table f8_table = [] {
  F8Table table{};
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = from_f8<mantissa_bits>(static_cast<std::uint8_t>(i));
  return table;
}();

const F8Table* table_of(const TensorInfo& tensor) {
  if (tensor.dtype_name == "F8_E4M3") return &f8_table<3>;
  if (tensor.dtype_name == "F8_E5M2") return &f8_table<2>;
  return nullptr;
}

// value * values[row / block_rows * across + column / block_columns]
struct Scales {
  std::vector<float> values;
  std::uint64_t block_rows = 1, block_columns = 1, across = 1;
};

std::string file_of(const Checkpoint::Entry& entry) { return entry.file->path().string(); }

std::vector<float> values_of(const Checkpoint::Entry& entry) {
  if (entry.tensor->dtype_name != "F8_E8M0") return entry.file->read_as_f32(*entry.tensor);
  std::vector<std::uint8_t> exponents(entry.tensor->bytes);
  entry.file->read(*entry.tensor, 0, std::as_writable_bytes(std::span(exponents)));
  std::vector<float> values(exponents.size());
  std::ranges::transform(exponents, values.begin(), [](std::uint8_t e) {
    return e == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, e - 127);
  });
  return values;
}

Scales read_scales(const Checkpoint::Entry& weight, const Checkpoint::Entry& entry, const Fp8Blocks& blocks) {
  const TensorInfo &tensor = *weight.tensor, &scale = *entry.tensor;
  check<DataError>(tensor.shape.size() == 2 && tensor.numel() > 0, file_of(weight), "The tensor {} is {} of shape {}; only matrices have scales.",
                   tensor.name, tensor.dtype_name, to_string(tensor.shape));
  const std::int64_t rows = tensor.shape[0], columns = tensor.shape[1];
  const auto parts = [](std::int64_t size, std::uint32_t block) { return (size - 1) / block + 1; };
  const Shape by_blocks{parts(rows, blocks.rows), parts(columns, blocks.columns)};
  Scales scales{.values = {}, .block_columns = static_cast<std::uint64_t>(columns)};
  if (scale.numel() == 1) {
    scales.block_rows = static_cast<std::uint64_t>(rows);
  } else if (scale.shape == by_blocks) {
    scales = {.values = {}, .block_rows = blocks.rows, .block_columns = blocks.columns, .across = static_cast<std::uint64_t>(by_blocks[1])};
  } else {
    check<DataError>(scale.shape == Shape{rows, 1} || scale.shape == Shape{rows}, file_of(entry),
                     "The tensor {} has the shape {}; the {} of {} have one scale, {} (one a row), or {} (one a block of {} x {}).", scale.name,
                     to_string(scale.shape), to_string(tensor.shape), tensor.name, rows, to_string(by_blocks), blocks.rows, blocks.columns);
  }
  scales.values = values_of(entry);
  const auto bad = std::ranges::find_if_not(scales.values, [](float value) { return std::isfinite(value); });
  check<DataError>(bad == scales.values.end(), file_of(entry), "The tensor {} holds a scale that is not finite, at index {}.", scale.name,
                   bad - scales.values.begin());
  return scales;
}

// One tensor of another file as F32.
class DecodedTensor : public TensorFile {
 public:
  DecodedTensor(const Checkpoint::Entry& source, std::optional<Scales> scales)
      : source_(source), table_(table_of(*source.tensor)), scales_(std::move(scales)) {
    TensorInfo decoded = *source.tensor;
    decoded.dtype = DType::f32;
    decoded.bytes = decoded.numel() * sizeof(float);
    tensors_.emplace(decoded.name, std::move(decoded));
  }

  const fs::path& path() const override { return source_.file->path(); }
  const TensorMap& tensors() const override { return tensors_; }

  void read(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    check(offset <= tensor.bytes && out.size() <= tensor.bytes - offset, path().string(),
          "Bytes {} to {} of the tensor {} were asked for, but it has {}.", offset, offset + out.size(), tensor.name, tensor.bytes);
    check(offset % sizeof(float) == 0 && out.size() % sizeof(float) == 0, path().string(), "Parts of values of the tensor {} were asked for.",
          tensor.name);
    std::array<float, piece_values> values;
    for (std::uint64_t first = offset / sizeof(float); !out.empty();) {
      const auto piece = std::span(values).first(std::min<std::uint64_t>(piece_values, out.size() / sizeof(float)));
      decode(first, piece);
      std::memcpy(out.data(), piece.data(), piece.size_bytes());
      out = out.subspan(piece.size_bytes());
      first += piece.size();
    }
  }

 private:
  void decode(std::uint64_t first, std::span<float> out) const {
    std::array<std::byte, piece_values * sizeof(double)> room;
    const std::uint64_t width = table_ ? 1 : sizeof(double);
    const auto bytes = std::span(room).first(out.size() * width);
    source_.file->read(*source_.tensor, first * width, bytes);
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (table_) {
        out[i] = (*table_)[static_cast<std::uint8_t>(bytes[i])];
      } else {
        double value = 0;
        std::memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
        out[i] = static_cast<float>(value);
      }
    }
    if (scales_) apply(*scales_, first, out);
  }

  // A run of columns that share a scale at a time.
  void apply(const Scales& scales, std::uint64_t first, std::span<float> out) const {
    const auto columns = static_cast<std::uint64_t>(source_.tensor->shape[1]);
    while (!out.empty()) {
      const std::uint64_t row = first / columns, column = first % columns, block = column / scales.block_columns;
      const std::uint64_t end = std::min(columns, (block + 1) * scales.block_columns), count = std::min<std::uint64_t>(out.size(), end - column);
      const float scale = scales.values[row / scales.block_rows * scales.across + block];
      for (float& value : out.first(count)) value *= scale;
      out = out.subspan(count);
      first += count;
    }
  }

  Checkpoint::Entry source_;
  const F8Table* table_;  // null of F64
  std::optional<Scales> scales_;
  TensorMap tensors_;
};

// Symmetric schemes have none, or zeros.
void check_zero_points(const Checkpoint& checkpoint, const std::string& name) {
  if (!checkpoint.has(name)) return;
  const Checkpoint::Entry& entry = checkpoint.at(name);
  constexpr std::uint64_t most = std::uint64_t{1} << 26;
  check<DataError>(entry.tensor->bytes <= most, file_of(entry), "The tensor {} has {} bytes; zero points have at most {}.", name,
                   entry.tensor->bytes, most);
  std::vector<std::byte> bytes(entry.tensor->bytes);
  entry.file->read(*entry.tensor, 0, bytes);
  check<DataError>(std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; }), file_of(entry),
                   "The tensor {} shifts values by zero points; scales alone are read.", name);
}

std::optional<Scales> find_scales(const Checkpoint& checkpoint, const std::string& name, const std::optional<Fp8Blocks>& blocks) {
  const std::string inverse = name + "_scale_inv", plain = name + "_scale";
  check<DataError>(!checkpoint.has(inverse) || !checkpoint.has(plain), checkpoint.folder().string(), "{} has both {} and {}; one of them is read.",
                   name, inverse, plain);
  const std::string& found = checkpoint.has(inverse) ? inverse : plain;
  const Checkpoint::Entry& weight = checkpoint.at(name);
  if (!checkpoint.has(found)) {
    check<DataError>(!blocks || weight.tensor->shape.size() != 2, checkpoint.folder().string(),
                     "{} is {}, and config.json says that the weights have scales, but neither {} nor {} is there.", name,
                     weight.tensor->dtype_name, inverse, plain);
    return std::nullopt;
  }
  check_zero_points(checkpoint, name + "_zero_point");
  return read_scales(weight, checkpoint.at(found), blocks.value_or(Fp8Blocks{}));
}

bool is_of_activations(std::string_view name) {
  constexpr std::array<std::string_view, 4> ends{".input_scale", ".output_scale", ".k_scale", ".v_scale"};
  return std::ranges::any_of(ends, [&](std::string_view end) { return name.ends_with(end); });
}

}  // namespace

void decode_tensors(Checkpoint& checkpoint, const std::optional<Fp8Blocks>& blocks) {
  std::vector<std::unique_ptr<const TensorFile>> decoded;
  std::vector<std::string> unneeded;
  for (const auto& [name, entry] : checkpoint.tensors()) {
    const bool in_eight_bits = table_of(*entry.tensor) != nullptr;
    if (in_eight_bits) {
      decoded.push_back(std::make_unique<const DecodedTensor>(entry, find_scales(checkpoint, name, blocks)));
      for (const char* suffix : {"_scale_inv", "_scale", "_zero_point"}) unneeded.push_back(name + suffix);
    } else if (entry.tensor->dtype_name == "F64") {
      decoded.push_back(std::make_unique<const DecodedTensor>(entry, std::nullopt));
    } else if (blocks && is_of_activations(name)) {
      unneeded.push_back(name);
    }
  }
  for (const std::string& name : unneeded) checkpoint.forget(name);
  for (auto& file : decoded) checkpoint.put(std::move(file));
}

DType written_dtype(const TensorInfo& tensor) { return table_of(tensor) ? DType::bf16 : *tensor.dtype; }

std::uint64_t stored_bytes(const TensorInfo& tensor) {
  return table_of(tensor) ? tensor.numel() : tensor.dtype_name == "F64" ? tensor.numel() * sizeof(double) : tensor.bytes;
}

}  // namespace nibble
