#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

// The best approximation of a matrix W (rows, columns) by one of low rank, U S V^T, in two halves: left = U sqrt(S), right =
// sqrt(S) V^T.
struct LowRank {
  std::vector<float> left;       // (rows, rank)
  std::vector<float> right;      // (rank, columns)
  std::vector<double> singular;  // (rank), falling
};

struct LowRankOptions {
  std::uint32_t rank = 16;       // at most the smaller dimension
  std::uint32_t iterations = 8;  // of the subspace; each brings what was left out down by the ratio of the squares of singular values
  std::uint32_t oversampling = 16;
  std::uint64_t seed = 42;
  unsigned threads = 0;          // 0: as many as the processor has; the result is the same for any number
};

// By the randomised subspace iteration of Halko, Martinsson and Tropp (2011), products in f32, everything thin in double.
LowRank low_rank(std::span<const float> w, std::size_t rows, std::size_t columns, const LowRankOptions& options);

}  // namespace nibble
