#pragma once

#include "tests/support/gpu_test.h"

#include <optional>
#include <span>

namespace nibble::test {

// An operand for the path, between guard words.
class GuardedOperand {
 public:
  GuardedOperand(ProductPath path, std::uint32_t rows, std::uint32_t columns);
  const Operand& operand() const { return operand_; }
  void expect_guards_intact() const;
  // Fails the test unless the operand is `expected` to within what rounding to its type and `tolerance` (relative, of f32
  // arithmetic) allow, and, in f16, each row is scaled as operand.h says.
  void expect_values(std::span<const double> expected, double tolerance) const;

 private:
  GuardedTensor data_;
  std::optional<GuardedTensor> scale_;
  Operand operand_;
};

}  // namespace nibble::test
