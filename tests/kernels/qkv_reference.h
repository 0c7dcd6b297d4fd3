#pragma once

#include "tests/kernels/attention_reference.h"

#include <span>

namespace nibble::test {

// What lies between a joint projection and attention's output, in double (qkv_attention.h).
struct QkvCase {
  AttentionCase attention;
  bool norm = true, rope = true;  // without rope every position is 0

  std::uint32_t tokens() const { return attention.tokens(); }
  std::uint32_t dim() const { return attention.head_dim; }
  std::uint32_t all_heads() const { return attention.heads + 2 * attention.key_heads; }
  std::uint32_t row() const { return all_heads() * dim(); }
  std::vector<std::uint32_t> positions() const;  // within the segment
};

constexpr double qkv_theta = 1e4;
constexpr float qkv_eps = 1e-6f;

struct QkvReference {
  AttentionResult result;
  std::vector<double> d_qkv;
};

// `norms`: the weights of queries and keys, one after the other. Gradients where d_o is given.
QkvReference attend_qkv(const QkvCase& shape, const std::vector<double>& qkv, std::span<const float> norms,
                        const std::vector<double>& d_o);

}  // namespace nibble::test
