#pragma once

#include <cstdint>
#include <vector>

namespace nibble::test {

// Attention as its formulas say, in double, one pair of query and key at a time. Layouts are those of attention.h.
struct AttentionCase {
  std::uint32_t heads, key_heads, head_dim;
  std::vector<std::uint32_t> segments;  // their lengths

  std::uint32_t tokens() const;
  std::vector<std::uint32_t> segment_begin() const;  // of each token
  std::vector<std::uint32_t> segment_end() const;
  std::vector<std::uint32_t> key_end() const;  // causal: i + 1
  std::size_t query_values() const { return std::size_t{heads} * tokens() * head_dim; }
  std::size_t key_values() const { return std::size_t{key_heads} * tokens() * head_dim; }
};

struct AttentionResult {
  std::vector<double> o, lse;
};

struct AttentionGradients {
  std::vector<double> dq, dk, dv;
};

AttentionResult attend(const AttentionCase& shape, const std::vector<double>& q, const std::vector<double>& k,
                       const std::vector<double>& v);
AttentionGradients attend_backward(const AttentionCase& shape, const std::vector<double>& q,
                                   const std::vector<double>& k, const std::vector<double>& v,
                                   const std::vector<double>& d_o);

}  // namespace nibble::test
