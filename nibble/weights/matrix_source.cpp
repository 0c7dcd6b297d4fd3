#include "nibble/weights/matrix_source.h"

#include "nibble/base/error.h"
#include "nibble/quant/parallel.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace nibble {
namespace {

constexpr std::uint64_t piece_values = std::uint64_t{4} << 20;

void expect_finite(const SafetensorsFile& file, const TensorInfo& tensor, std::span<const float> values, std::uint64_t first) {
  const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  check<DataError>(bad == values.end(), file.path().string(), "The tensor {} holds a value that is not finite, at index {}.",
                   tensor.name, first + static_cast<std::uint64_t>(bad - values.begin()));
}

}  // namespace

void read_pieces(const SafetensorsFile& file, const TensorInfo& tensor, const PieceSink& sink) {
  const std::uint64_t count = tensor.numel(), width = size_of(*tensor.dtype);
  std::vector<std::byte> bytes(std::min(count, piece_values) * width);
  std::vector<float> values(std::min(count, piece_values));
  for (std::uint64_t first = 0; first < count; first += piece_values) {
    const std::uint64_t size = std::min(piece_values, count - first);
    const auto raw = std::span(bytes).first(size * width);
    const auto piece = std::span(values).first(size);
    file.read(tensor, first * width, raw);
    parallel_ranges(size, 1 << 16, 0, [&](std::size_t begin, std::size_t end) {
      convert_to_f32(*tensor.dtype, raw.subspan(begin * width, (end - begin) * width), piece.subspan(begin, end - begin));
    });
    sink(piece, first);
  }
}

MatrixSource source_of(std::shared_ptr<const SafetensorsFile> file, const TensorInfo& tensor) {
  check(tensor.shape.size() == 2 && tensor.dtype, file->path().string(), "The tensor {} of shape {} is no matrix.", tensor.name,
        to_string(tensor.shape));
  return {.rows = static_cast<std::uint32_t>(tensor.shape[0]), .columns = static_cast<std::uint32_t>(tensor.shape[1]),
          .read = [file = std::move(file), tensor](const PieceSink& sink) {
            read_pieces(*file, tensor, [&](std::span<const float> values, std::uint64_t first) {
              expect_finite(*file, tensor, values, first);
              sink(values, first);
            });
          }};
}

MatrixSource source_of(const Checkpoint::Entry& entry) {
  return source_of(std::shared_ptr<const SafetensorsFile>(std::shared_ptr<void>(), entry.file), *entry.tensor);
}

}  // namespace nibble
