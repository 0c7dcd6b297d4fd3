#pragma once

#include "nibble/kernels/qkv_attention.h"
#include "tests/kernels/attention_run.h"
#include "tests/kernels/qkv_reference.h"

#include <cmath>

namespace nibble::test {

// How a pass is done: the path of the operands, and whether on matrix units.
struct QkvMode {
  ProductPath path;
  bool packed;
  std::optional<detail::AttentionTiles> tiles = {};

  // Errors that are allowed. In f32 they are those of attention_test.cpp. f16 operands are off by 2^-11 of each value: o and
  // dv are products of one rounded operand, the weights, and rounded again, which makes 2^-10 at most. The scores' errors,
  // 2^-10 of q . k / sqrt(D), whose terms are on average 1/4, come to the same in lse; and dq and dk are products with dS,
  // itself the difference of two.
  double result(std::uint32_t dim) const {
    return path == ProductPath::f32 ? (2 * dim * std::sqrt(dim) / 4 + 64) * 0x1p-24 : 0x1p-10;
  }
  double lse(std::uint32_t dim) const { return path == ProductPath::f32 ? result(dim) : 0x1p-9; }
  double gradient(std::uint32_t dim) const { return path == ProductPath::f32 ? 8 * result(dim) : 0x1p-9; }
  double value_gradient(std::uint32_t dim) const { return path == ProductPath::f32 ? 8 * result(dim) : 0x1p-10; }
};

struct QkvInputs {
  std::vector<float> qkv, d_o, norms;

  explicit QkvInputs(const QkvCase& shape)
      : qkv(random_values(std::size_t{shape.tokens()} * shape.row(), 1)),
        d_o(random_values(shape.attention.query_values(), 2)),
        norms(random_values(2 * shape.dim(), 3)) {}
};

// Of a room for `more` tokens than there are.
QkvAttentionShape room_shape(const QkvCase& shape, const QkvMode& mode, std::uint32_t more = 5);

// All tokens in one pass.
QkvAttention forward_of(const QkvCase& shape, const QkvMode& mode, const QkvInputs& inputs, const Operand& o, const Tensor& lse);

}  // namespace nibble::test
