#include "nibble/weights/merge_matrix.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/quant/nf4.h"
#include "nibble/quant/parallel.h"

namespace nibble {
namespace {

constexpr std::size_t merged_piece_values = std::size_t{1} << 22;
constexpr std::size_t least_merged_a_thread = std::size_t{1} << 14;

double squares(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += double{value} * value;
  return sum;
}

bool is_finite(float value) { return std::isfinite(value); }

// Rounds each value to 16 bits and returns the index of the first that is not finite then, or the number of values.
template <typename Round, typename Widen>
std::size_t round_each(std::span<const float> values, std::span<std::byte> out, Round round, Widen widen) {
  std::size_t bad = values.size();
  for (std::size_t i = values.size(); i-- > 0;) {
    const std::uint16_t half = round(values[i]);
    std::memcpy(out.data() + 2 * i, &half, sizeof half);
    if (!std::isfinite(widen(half))) bad = i;
  }
  return bad;
}

// Some rows of the matrix, and room for each step of the work on them.
class Piece {
 public:
  Piece(const MergeMatrix& matrix, std::size_t columns, std::size_t most_rows)
      : matrix_(matrix), columns_(columns), stored_(most_rows * columns), norms_(most_rows) {
    bytes_.resize(stored_.size() * std::max(matrix.bnb ? 0 : size_of(dtype()), size_of(matrix.dtype)));
    if (!matrix.bnb && matrix.terms.empty() && !matrix.through_nf4) return;
    if (!matrix.bnb) nf4_.resize(stored_.size());
    packed_.resize(nf4_packed_bytes(stored_.size()));
    absmax_.resize(nf4_blocks(stored_.size()));
  }

  // The merged bytes of rows [first, first + rows).
  std::span<const std::byte> merge(std::size_t first, std::size_t rows) {
    first_ = first;
    read(rows);
    const bool adapted = !matrix_.terms.empty();
    if (!nf4_.empty()) round_to_nf4(rows);
    const std::size_t out_size = size_of(matrix_.dtype);
    parallel_ranges(
        rows, std::max<std::size_t>(1, least_merged_a_thread / columns_), 0, [&](std::size_t begin, std::size_t end) {
          if (adapted) measure_rows(begin, end);
          if (adapted) update_rows(begin, end);
          convert_from_f32(std::span(result()).subspan(begin * columns_, (end - begin) * columns_), matrix_.dtype,
                           std::span(bytes_).subspan(begin * columns_ * out_size, (end - begin) * columns_ * out_size),
                           name(), (first + begin) * columns_);
        });
    return std::span(bytes_).first(rows * columns_ * out_size);
  }

  // Of the rows that were merged last, added up in their order.
  MergeNorms norms(std::size_t rows) const {
    MergeNorms sum;
    for (std::size_t row = 0; row < rows; ++row) sum += norms_[row];
    return sum;
  }

 private:
  DType dtype() const { return *matrix_.base.tensor->dtype; }
  std::vector<float>& result() { return matrix_.through_nf4 ? nf4_ : stored_; }
  const std::string& name() const { return matrix_.base.tensor->name; }
  std::span<float> row_of(std::vector<float>& values, std::size_t row) const {
    return std::span(values).subspan(row * columns_, columns_);
  }

  void read(std::size_t rows) {
    if (matrix_.bnb) return read_quantised(rows);
    const auto bytes = std::span(bytes_).first(rows * columns_ * size_of(dtype()));
    matrix_.base.file->read(*matrix_.base.tensor, first_ * columns_ * size_of(dtype()), bytes);
    convert_to_f32(dtype(), bytes, std::span(stored_).first(rows * columns_));
  }

  void read_quantised(std::size_t rows) {
    const std::size_t count = rows * columns_;
    const auto packed = std::span(packed_).first(nf4_packed_bytes(count));
    const auto absmax = std::span(absmax_).first(nf4_blocks(count));
    read_bnb(*matrix_.bnb, first_ * columns_ / nf4_block, packed, absmax);
    nf4_dequantize(packed, absmax, std::span(stored_).first(count), {.codes = matrix_.bnb->book});
  }

  // The first row is a multiple of 64, so that blocks begin where those of the whole matrix do.
  void round_to_nf4(std::size_t rows) {
    const std::size_t count = rows * columns_;
    const auto packed = std::span(packed_).first(nf4_packed_bytes(count));
    const auto absmax = std::span(absmax_).first(nf4_blocks(count));
    nf4_quantize(DType::f32, std::as_bytes(std::span(stored_).first(count)), packed, absmax,
                 {.name = name(), .first_index = first_ * columns_});
    nf4_dequantize(packed, absmax, std::span(nf4_).first(count));
  }

  void measure_rows(std::size_t begin, std::size_t end) {
    for (std::size_t row = begin; row < end; ++row) {
      const auto stored = row_of(stored_, row);
      MergeNorms& norms = norms_[row] = {.weights = squares(stored)};
      if (nf4_.empty()) continue;
      const auto rounded = row_of(nf4_, row);
      for (std::size_t i = 0; i < columns_; ++i) {
        const double difference = double{rounded[i]} - stored[i];
        norms.nf4_error += difference * difference;
      }
    }
  }

  void update_rows(std::size_t begin, std::size_t end) {
    const auto& magnitude = matrix_.terms.front().lora->magnitude;
    if (magnitude.empty()) return add_product(begin, end);
    for (std::size_t row = begin; row < end; ++row) {
      const auto w = row_of(result(), row);
      const std::vector<float> before(w.begin(), w.end());
      add_product(row, row + 1);
      bring_to_length(w, magnitude[first_ + row]);
      norms_[row].update = 0;
      for (std::size_t i = 0; i < columns_; ++i) norms_[row].update += std::pow(double{w[i]} - before[i], 2);
    }
  }

  // DoRA's rows of W + scaling * B A, which stay zero where they are.
  static void bring_to_length(std::span<float> row, float magnitude) {
    const double norm = std::sqrt(squares(row));
    const double gain = norm == 0 ? 0 : magnitude / norm;
    for (float& value : row) value = static_cast<float>(value * gain);
  }

  // W += the sum of scaling * (B A), a block of columns at a time, whose rows of A stay in the first-level cache.
  void add_product(std::size_t begin, std::size_t end) {
    std::array<float, block_columns> sum;
    for (std::size_t column = 0; column < columns_; column += block_columns) {
      const auto update = std::span(sum).first(std::min(block_columns, columns_ - column));
      for (std::size_t row = begin; row < end; ++row) {
        std::fill(update.begin(), update.end(), -0.0f);  // to which adding leaves every value as it is
        for (const MergeTerm& term : matrix_.terms) add_term(term, row, column, update);
        norms_[row].update += squares(update);
        float* w = result().data() + row * columns_ + column;
        for (std::size_t i = 0; i < update.size(); ++i) w[i] += update[i];
      }
    }
  }

  void add_term(const MergeTerm& term, std::size_t row, std::size_t column, std::span<float> update) const {
    std::array<float, block_columns> sum{};
    const std::size_t rank = term.lora->a.size() / columns_, width = update.size();
    const auto scaling = static_cast<float>(term.scaling);
    for (std::size_t k = 0; k < rank; ++k) {
      const float b = term.lora->b[(first_ + row) * rank + k];
      const float* a = term.lora->a.data() + k * columns_ + column;
      for (std::size_t i = 0; i < width; ++i) sum[i] += b * a[i];
    }
    for (std::size_t i = 0; i < width; ++i) update[i] += sum[i] * scaling;
  }

  static constexpr std::size_t block_columns = 256;

  const MergeMatrix& matrix_;
  std::size_t columns_;
  std::size_t first_ = 0;            // row
  std::vector<std::byte> bytes_;     // as read, later as written
  std::vector<float> stored_, nf4_;  // W, and W through NF4; the product is added to one of them
  std::vector<std::uint8_t> packed_;
  std::vector<float> absmax_;
  std::vector<MergeNorms> norms_;  // a row each, so that their sum does not depend on the number of cores
};

}  // namespace

MergeNorms& MergeNorms::operator+=(const MergeNorms& other) {
  weights += other.weights;
  update += other.update;
  nf4_error += other.nf4_error;
  return *this;
}

void convert_from_f32(std::span<const float> values, DType dtype, std::span<std::byte> out, std::string_view name,
                      std::size_t first_index) {
  std::size_t bad = values.size();
  switch (dtype) {
    case DType::f16: bad = round_each(values, out, f32_to_f16, f16_to_f32); break;
    case DType::bf16: bad = round_each(values, out, f32_to_bf16, bf16_to_f32); break;
    default:
      bad = static_cast<std::size_t>(std::find_if_not(values.begin(), values.end(), is_finite) - values.begin());
      if (!values.empty()) std::memcpy(out.data(), values.data(), values.size_bytes());
  }
  check<DataError>(bad == values.size(), name, "The value {} at index {} is beyond the range of {}.",
                   bad == values.size() ? 0.0f : values[bad], first_index + bad, name_of(dtype));
}

void convert_matrix(const MatrixSource& source, DType dtype, std::string_view name, const TakeBytes& take) {
  std::vector<std::byte> bytes;
  source.read([&](std::span<const float> values, std::uint64_t first) {
    bytes.resize(values.size() * size_of(dtype));
    parallel_ranges(values.size(), least_merged_a_thread, 0, [&](std::size_t begin, std::size_t end) {
      const auto out = std::span(bytes).subspan(begin * size_of(dtype), (end - begin) * size_of(dtype));
      convert_from_f32(values.subspan(begin, end - begin), dtype, out, name, first + begin);
    });
    take(bytes);
  });
}

MergeNorms merge_matrix(const MergeMatrix& matrix, const TakeBytes& take) {
  const auto& shape = matrix.base.tensor->shape;
  const auto columns = matrix.bnb ? matrix.bnb->columns : shape.size() == 2 ? static_cast<std::size_t>(shape[1]) : 1;
  const std::size_t rows = matrix.bnb ? matrix.bnb->rows : columns == 0 ? 0 : matrix.base.tensor->numel() / columns;
  const std::size_t step = std::min(rows, nf4_block * std::max<std::size_t>(1, merged_piece_values / (nf4_block * columns)));
  MergeNorms norms;
  Piece piece(matrix, columns, step);
  for (std::size_t first = 0; first < rows; first += step) {
    const std::size_t count = std::min(step, rows - first);
    take(piece.merge(first, count));
    norms += piece.norms(count);
  }
  return norms;
}

}  // namespace nibble
