#pragma once

#include <cstdint>
#include <vector>

namespace nibble::test {

// Attention as its formulas say, in double, one pair of query and key at a time. Layouts are those of attention.h.
struct AttentionCase {
  std::uint32_t heads, key_heads, head_dim;
  std::vector<std::uint32_t> segments;  // their lengths
  std::uint32_t window = 0;             // keys that a query meets at most, itself the last; 0: those of its segment

  std::uint32_t tokens() const;
  std::vector<std::uint32_t> key_begin() const;  // of each token as query
  std::vector<std::uint32_t> key_end() const;    // causal: i + 1
  std::vector<std::uint32_t> query_end() const;  // of each token as key
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
