#include "nibble/weights/matrix_source.h"

#include "nibble/base/error.h"
#include "nibble/quant/parallel.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

namespace nibble {
namespace {

constexpr std::uint64_t piece_values = std::uint64_t{4} << 20;
constexpr std::size_t least_values_a_thread = std::size_t{1} << 16;

// Magnitudes compare as integers do, and those that are not finite come last.
bool all_finite(std::span<const float> values) {
  std::uint32_t largest = 0;
  for (const float value : values) largest = std::max(largest, std::bit_cast<std::uint32_t>(value) & 0x7fffffffu);
  return largest < 0x7f800000u;
}

void expect_finite(const TensorFile& file, const TensorInfo& tensor, std::span<const float> values, std::uint64_t first) {
  if (all_finite(values)) return;
  const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  fail<DataError>(file.path().string(), "The tensor {} holds a value that is not finite, at index {}.", tensor.name,
                  first + static_cast<std::uint64_t>(bad - values.begin()));
}

enum class Values { any, finite };

// Threads read, convert and look at their part of each piece.
void read_in_pieces(const TensorFile& file, const TensorInfo& tensor, Values wanted, const PieceSink& sink) {
  const std::uint64_t count = tensor.numel(), width = size_of(*tensor.dtype);
  const auto room = std::make_unique_for_overwrite<std::byte[]>(std::min(count, piece_values) * width);
  const auto values = std::make_unique_for_overwrite<float[]>(std::min(count, piece_values));
  for (std::uint64_t first = 0; first < count; first += piece_values) {
    const std::span piece(values.get(), std::min(piece_values, count - first));
    parallel_ranges(piece.size(), least_values_a_thread, 0, [&](std::size_t begin, std::size_t end) {
      const std::span bytes(room.get() + begin * width, (end - begin) * width);
      const auto part = piece.subspan(begin, end - begin);
      file.read(tensor, (first + begin) * width, bytes);
      convert_to_f32(*tensor.dtype, bytes, part);
      if (wanted == Values::finite) expect_finite(file, tensor, part, first + begin);
    });
    sink(piece, first);
  }
}

}  // namespace

void read_pieces(const TensorFile& file, const TensorInfo& tensor, const PieceSink& sink) {
  read_in_pieces(file, tensor, Values::any, sink);
}

MatrixSource source_of(std::shared_ptr<const TensorFile> file, const TensorInfo& tensor) {
  check(tensor.shape.size() == 2 && tensor.dtype, file->path().string(), "The tensor {} of shape {} is no matrix.", tensor.name,
        to_string(tensor.shape));
  return {.rows = static_cast<std::uint32_t>(tensor.shape[0]), .columns = static_cast<std::uint32_t>(tensor.shape[1]),
          .read = [file = std::move(file), tensor](const PieceSink& sink) {
            read_in_pieces(*file, tensor, Values::finite, sink);
          }};
}

MatrixSource source_of(const Checkpoint::Entry& entry) {
  return source_of(std::shared_ptr<const TensorFile>(std::shared_ptr<void>(), entry.file), *entry.tensor);
}

}  // namespace nibble
