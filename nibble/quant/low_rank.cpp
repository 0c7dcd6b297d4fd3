#include "nibble/quant/low_rank.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/quant/parallel.h"

namespace nibble {
namespace {

constexpr std::size_t columns_at_once = 256;  // of W, whose rows of the thin factor stay in the first-level cache
constexpr std::size_t gram_rows = 1024;       // that are added up by themselves, so that sums do not depend on the number of cores
constexpr double negligible = 1e-20;          // of squares, beside the largest

struct Matrix {
  std::span<const float> values;
  std::size_t rows, columns;
};

// A tall matrix (rows, q), row-major.
struct Thin {
  std::size_t rows, q;
  std::vector<float> values;

  Thin(std::size_t n, std::size_t width) : rows(n), q(width), values(n * width) {}
  float* row(std::size_t i) { return values.data() + i * q; }
  const float* row(std::size_t i) const { return values.data() + i * q; }
};

void add_scaled(float factor, const float* from, float* to, std::size_t q) {
  for (std::size_t j = 0; j < q; ++j) to[j] += factor * from[j];
}

// W x
Thin times(const Matrix& w, const Thin& x, unsigned threads) {
  Thin y(w.rows, x.q);
  parallel_ranges(w.rows, 16, threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t first = 0; first < w.columns; first += columns_at_once) {
      const std::size_t last = std::min(w.columns, first + columns_at_once);
      for (std::size_t i = begin; i < end; ++i) {
        for (std::size_t c = first; c < last; ++c) add_scaled(w.values[i * w.columns + c], x.row(c), y.row(i), x.q);
      }
    }
  });
  return y;
}

// W^T y
Thin transposed_times(const Matrix& w, const Thin& y, unsigned threads) {
  Thin x(w.columns, y.q);
  parallel_ranges((w.columns + columns_at_once - 1) / columns_at_once, 1, threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t k = begin; k < end; ++k) {
      const std::size_t last = std::min(w.columns, (k + 1) * columns_at_once);
      for (std::size_t i = 0; i < w.rows; ++i) {
        for (std::size_t c = k * columns_at_once; c < last; ++c) add_scaled(w.values[i * w.columns + c], y.row(i), x.row(c), y.q);
      }
    }
  });
  return x;
}

// x^T x (q, q)
std::vector<double> gram(const Thin& x, unsigned threads) {
  const std::size_t parts = (x.rows + gram_rows - 1) / gram_rows, size = x.q * x.q;
  std::vector<double> sums(parts * size);
  parallel_ranges(parts, 1, threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t part = begin; part < end; ++part) {
      double* sum = sums.data() + part * size;
      for (std::size_t r = part * gram_rows; r < std::min(x.rows, (part + 1) * gram_rows); ++r) {
        for (std::size_t i = 0; i < x.q; ++i) {
          for (std::size_t j = i; j < x.q; ++j) sum[i * x.q + j] += double{x.row(r)[i]} * x.row(r)[j];
        }
      }
    }
  });
  for (std::size_t part = 1; part < parts; ++part) {
    for (std::size_t i = 0; i < size; ++i) sums[i] += sums[part * size + i];
  }
  sums.resize(size);
  for (std::size_t i = 0; i < x.q; ++i) {
    for (std::size_t j = 0; j < i; ++j) sums[i * x.q + j] = sums[j * x.q + i];
  }
  return sums;
}

// x = Q R by Cholesky of its Gram matrix, with zeros for columns that depend on those before; twice, as once leaves Q orthogonal to
// within the square of x's condition alone.
void orthonormalise(Thin& x, unsigned threads) {
  const std::size_t q = x.q;
  for (int pass = 0; pass < 2; ++pass) {
    std::vector<double> r = gram(x, threads);  // becomes R in its upper half
    double largest = 0;
    for (std::size_t i = 0; i < q; ++i) largest = std::max(largest, r[i * q + i]);
    for (std::size_t i = 0; i < q; ++i) {
      for (std::size_t k = 0; k < i; ++k) {
        for (std::size_t j = i; j < q; ++j) r[i * q + j] -= r[k * q + i] * r[k * q + j];
      }
      const double pivot = r[i * q + i];
      const double inverse = pivot > 1e-12 * largest ? 1 / std::sqrt(pivot) : 0;
      for (std::size_t j = i; j < q; ++j) r[i * q + j] *= inverse;
    }
    parallel_ranges(x.rows, 64, threads, [&](std::size_t begin, std::size_t end) {
      std::vector<double> row(q);
      for (std::size_t n = begin; n < end; ++n) {
        for (std::size_t i = 0; i < q; ++i) {
          double value = x.row(n)[i];
          for (std::size_t k = 0; k < i; ++k) value -= row[k] * r[k * q + i];
          row[i] = r[i * q + i] > 0 ? value / r[i * q + i] : 0;
        }
        std::copy(row.begin(), row.end(), x.row(n));
      }
    });
  }
}

// Eigenvalues of a symmetric matrix, and its eigenvectors as columns, by cyclic Jacobi rotations.
struct Eigen {
  std::vector<double> values, vectors;
};

Eigen eigen_of(std::vector<double> a, std::size_t q) {
  std::vector<double> v(q * q);
  for (std::size_t i = 0; i < q; ++i) v[i * q + i] = 1;
  const auto rotate = [&](std::vector<double>& m, std::size_t step, std::size_t first, std::size_t second, double c, double s) {
    for (std::size_t k = 0; k < q; ++k) {
      double &x = m[k * step + first], &y = m[k * step + second];
      const double old = x;
      x = c * old - s * y;
      y = s * old + c * y;
    }
  };
  for (int sweep = 0; sweep < 60; ++sweep) {
    double off = 0, on = 0;
    for (std::size_t i = 0; i < q; ++i) {
      on += a[i * q + i] * a[i * q + i];
      for (std::size_t j = i + 1; j < q; ++j) off += a[i * q + j] * a[i * q + j];
    }
    if (off <= 1e-30 * on) break;
    for (std::size_t i = 0; i < q; ++i) {
      for (std::size_t j = i + 1; j < q; ++j) {
        const double b = a[i * q + j];
        if (b == 0) continue;
        const double theta = (a[j * q + j] - a[i * q + i]) / (2 * b);
        const double t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        rotate(a, q, i, j, c, s);            // columns
        rotate(a, 1, i * q, j * q, c, s);    // rows
        rotate(v, q, i, j, c, s);
      }
    }
  }
  Eigen result{.values = {}, .vectors = std::move(v)};
  for (std::size_t i = 0; i < q; ++i) result.values.push_back(a[i * q + i]);
  return result;
}

// Of W ~ y x^T with orthonormal y: x^T x = V S^2 V^T, and y V S is what the left half is made of.
LowRank halves(const Thin& y, const Thin& x, std::size_t rank, unsigned threads) {
  const std::size_t q = y.q;
  const Eigen eigen = eigen_of(gram(x, threads), q);
  std::vector<std::size_t> order(q);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return eigen.values[a] > eigen.values[b]; });
  LowRank result{.left = std::vector<float>(y.rows * rank), .right = std::vector<float>(rank * x.rows), .singular = {}};
  for (std::size_t i = 0; i < rank; ++i) {
    const double square = eigen.values[order[i]];
    const bool counts = square > negligible * eigen.values[order[0]] && square > 0;
    const double singular = counts ? std::sqrt(square) : 0, root = std::sqrt(singular);
    result.singular.push_back(singular);
    const auto combine = [&](const Thin& from, std::size_t row, double factor) {
      double sum = 0;
      for (std::size_t j = 0; j < q; ++j) sum += from.row(row)[j] * eigen.vectors[j * q + order[i]];
      return static_cast<float>(sum * factor);
    };
    if (!counts) continue;
    for (std::size_t row = 0; row < y.rows; ++row) result.left[row * rank + i] = combine(y, row, root);
    for (std::size_t row = 0; row < x.rows; ++row) result.right[i * x.rows + row] = combine(x, row, 1 / root);
  }
  return result;
}

}  // namespace

LowRank low_rank(std::span<const float> w, std::size_t rows, std::size_t columns, const LowRankOptions& options) {
  const std::size_t least = std::min(rows, columns);
  check(w.size() == rows * columns && options.rank > 0 && options.rank <= least, "low rank",
        "A matrix of {} x {} came with {} values; its rank is to be {}, and 1 to {} is possible.", rows, columns, w.size(), options.rank, least);
  const Matrix matrix{w, rows, columns};
  Thin x(columns, std::min<std::size_t>(least, std::size_t{options.rank} + options.oversampling));
  Rng rng(options.seed);
  for (float& value : x.values) value = rng.uniform(-1.0f, 1.0f);
  Thin y = times(matrix, x, options.threads);
  for (std::uint32_t i = 0; i < options.iterations; ++i) {
    orthonormalise(y, options.threads);
    x = transposed_times(matrix, y, options.threads);
    orthonormalise(x, options.threads);
    y = times(matrix, x, options.threads);
  }
  orthonormalise(y, options.threads);
  return halves(y, transposed_times(matrix, y, options.threads), options.rank, options.threads);
}

}  // namespace nibble
