#include "tests/kernels/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble::test {
namespace {

double dot(const double* a, const double* b, std::uint32_t count) {
  double sum = 0;
  for (std::uint32_t d = 0; d < count; ++d) sum += a[d] * b[d];
  return sum;
}

// The tensors of one query head, and of the key head that it reads.
struct Rows {
  const AttentionCase& shape;
  std::uint32_t head;

  std::size_t query(std::uint32_t i) const { return (std::size_t{head} * shape.tokens() + i) * shape.head_dim; }
  std::size_t key(std::uint32_t j) const {
    const std::uint32_t key_head = head / (shape.heads / shape.key_heads);
    return (std::size_t{key_head} * shape.tokens() + j) * shape.head_dim;
  }
  std::size_t token(std::uint32_t i) const { return (std::size_t{i} * shape.heads + head) * shape.head_dim; }
};

// exp(s_ij) / sum_j exp(s_ij) for the keys from `begin` to the query itself, and the logarithm of the sum.
std::vector<double> probabilities(const Rows& rows, std::uint32_t i, std::uint32_t begin, const std::vector<double>& q,
                                  const std::vector<double>& k, double& lse) {
  const std::uint32_t dim = rows.shape.head_dim;
  std::vector<double> p;
  for (std::uint32_t j = begin; j <= i; ++j) {
    p.push_back(std::exp(dot(&q[rows.query(i)], &k[rows.key(j)], dim) / std::sqrt(static_cast<double>(dim))));
  }
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= total;
  lse = std::log(total);
  return p;
}

}  // namespace

std::uint32_t AttentionCase::tokens() const { return std::accumulate(segments.begin(), segments.end(), 0u); }

std::vector<std::uint32_t> AttentionCase::key_begin() const {
  std::vector<std::uint32_t> begins;
  for (const std::uint32_t length : segments) {
    const auto first = static_cast<std::uint32_t>(begins.size());
    for (std::uint32_t i = 0; i < length; ++i) begins.push_back(window > 0 && i >= window ? first + i + 1 - window : first);
  }
  return begins;
}

std::vector<std::uint32_t> AttentionCase::query_end() const {
  std::vector<std::uint32_t> ends;
  for (const std::uint32_t length : segments) {
    const auto first = static_cast<std::uint32_t>(ends.size());
    for (std::uint32_t j = 0; j < length; ++j) ends.push_back(first + (window > 0 ? std::min(length, j + window) : length));
  }
  return ends;
}

std::vector<std::uint32_t> AttentionCase::key_end() const {
  std::vector<std::uint32_t> ends(tokens());
  std::iota(ends.begin(), ends.end(), 1u);
  return ends;
}

AttentionResult attend(const AttentionCase& shape, const std::vector<double>& q, const std::vector<double>& k,
                       const std::vector<double>& v) {
  AttentionResult result{std::vector<double>(shape.query_values()), std::vector<double>(shape.heads * shape.tokens())};
  const auto begin = shape.key_begin();
  for (std::uint32_t head = 0; head < shape.heads; ++head) {
    const Rows rows{shape, head};
    for (std::uint32_t i = 0; i < shape.tokens(); ++i) {
      const auto p = probabilities(rows, i, begin[i], q, k, result.lse[head * shape.tokens() + i]);
      for (std::uint32_t j = begin[i]; j <= i; ++j) {
        for (std::uint32_t d = 0; d < shape.head_dim; ++d) {
          result.o[rows.token(i) + d] += p[j - begin[i]] * v[rows.key(j) + d];
        }
      }
    }
  }
  return result;
}

AttentionGradients attend_backward(const AttentionCase& shape, const std::vector<double>& q,
                                   const std::vector<double>& k, const std::vector<double>& v,
                                   const std::vector<double>& d_o) {
  AttentionGradients result;
  result.dq.resize(q.size());
  result.dk.resize(k.size());
  result.dv.resize(v.size());
  const auto begin = shape.key_begin();
  const double scale = 1 / std::sqrt(static_cast<double>(shape.head_dim));
  for (std::uint32_t head = 0; head < shape.heads; ++head) {
    const Rows rows{shape, head};
    for (std::uint32_t i = 0; i < shape.tokens(); ++i) {
      double lse = 0, delta = 0;
      const auto p = probabilities(rows, i, begin[i], q, k, lse);
      std::vector<double> dp;
      for (std::uint32_t j = begin[i]; j <= i; ++j) {
        dp.push_back(dot(&d_o[rows.token(i)], &v[rows.key(j)], shape.head_dim));
        delta += p[j - begin[i]] * dp.back();
      }
      for (std::uint32_t j = begin[i]; j <= i; ++j) {
        const double weight = p[j - begin[i]], ds = weight * (dp[j - begin[i]] - delta) * scale;
        for (std::uint32_t d = 0; d < shape.head_dim; ++d) {
          result.dq[rows.query(i) + d] += ds * k[rows.key(j) + d];
          result.dk[rows.key(j) + d] += ds * q[rows.query(i) + d];
          result.dv[rows.key(j) + d] += weight * d_o[rows.token(i) + d];
        }
      }
    }
  }
  return result;
}

}  // namespace nibble::test
