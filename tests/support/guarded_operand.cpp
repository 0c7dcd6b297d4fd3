#include "tests/support/guarded_operand.h"

#include <algorithm>
#include <cmath>

namespace nibble::test {

GuardedOperand::GuardedOperand(ProductPath path, std::uint32_t rows, std::uint32_t columns)
    : data_(operand_dtype(path), {rows, columns}) {
  if (path != ProductPath::f32) scale_.emplace(DType::f32, std::initializer_list<std::uint32_t>{rows});
  operand_ = {data_.tensor(), scale_ ? scale_->tensor() : Tensor{}};
}

void GuardedOperand::expect_guards_intact() const {
  data_.expect_guards_intact();
  if (scale_) scale_->expect_guards_intact();
}

void GuardedOperand::expect_values(std::span<const double> expected, double tolerance) const {
  const auto data = download(operand_.data), values = download(operand_);
  ASSERT_EQ(values.size(), expected.size());
  const std::uint32_t rows = operand_.data.dim(0), columns = operand_.data.dim(1);
  for (std::size_t r = 0; r < rows; ++r) {
    double largest = 0, stored = 0;
    for (std::size_t i = r * columns; i < (r + 1) * columns; ++i) {
      largest = std::max(largest, std::fabs(expected[i]));
      stored = std::max(stored, std::fabs(double{data[i]}));
    }
    if (scale_ && largest > 1e-30) {
      // The upper bound includes the value that rounds up to 2^14.
      EXPECT_GE(stored, 0x1p13) << "row " << r;
      EXPECT_LE(stored, 0x1p14) << "row " << r;
    }
    // f16 has 11 bits, and steps of 2^-24 near zero in a row whose largest is at least 2^13.
    const double relative = tolerance + (scale_ ? 0x1p-11 : 0.0), absolute = scale_ ? largest * 0x1p-37 : 0.0;
    for (std::size_t i = r * columns; i < (r + 1) * columns; ++i) {
      const double allowed = relative * std::fabs(expected[i]) + absolute + 1e-37;
      EXPECT_LE(std::fabs(values[i] - expected[i]), allowed) << "row " << r << " column " << i - r * columns << ": "
                                                              << values[i] << " instead of " << expected[i];
      if (!(std::fabs(values[i] - expected[i]) <= allowed)) return;
    }
  }
}

}  // namespace nibble::test
