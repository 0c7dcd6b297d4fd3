#include "tests/kernels/qkv_reference.h"

#include "nibble/kernels/qk_norm_rope.h"

#include <cmath>

namespace nibble::test {
namespace {

// One head of one token.
struct Row {
  const QkvCase& shape;
  std::uint32_t position;
  const float* weight;  // null: no norm
  std::vector<float> frequencies;

  void turn(std::vector<double>& x, double direction) const {
    const std::uint32_t half = shape.dim() / 2;
    for (std::uint32_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * frequencies[i];
      const double cosine = std::cos(double{angle}), sine = direction * std::sin(double{angle});
      const double low = x[i], high = x[i + half];
      x[i] = low * cosine - high * sine;
      x[i + half] = high * cosine + low * sine;
    }
  }

  double inverse(const double* x) const {
    double squares = 0;
    for (std::uint32_t d = 0; d < shape.dim(); ++d) squares += x[d] * x[d];
    return 1 / std::sqrt(squares / shape.dim() + double{qkv_eps});
  }

  std::vector<double> forward(const double* x) const {
    std::vector<double> y(x, x + shape.dim());
    if (weight) {
      const double inv = inverse(x);
      for (std::uint32_t d = 0; d < shape.dim(); ++d) y[d] *= inv * double{weight[d]};
    }
    turn(y, 1);
    return y;
  }

  std::vector<double> backward(const double* x, std::vector<double> dy) const {
    turn(dy, -1);
    if (!weight) return dy;
    const double inv = inverse(x);
    double along = 0;
    for (std::uint32_t d = 0; d < shape.dim(); ++d) along += (dy[d] *= double{weight[d]}) * x[d];
    for (std::uint32_t d = 0; d < shape.dim(); ++d) dy[d] = inv * (dy[d] - x[d] * inv * inv * along / shape.dim());
    return dy;
  }
};

// `visit(row, where the head begins in qkv, where in q, k or v, kind: 0, 1, 2)` for each head of each token.
template <typename Visit>
void for_rows(const QkvCase& shape, std::span<const float> norms, const Visit& visit) {
  const std::uint32_t heads = shape.attention.heads, key_heads = shape.attention.key_heads, dim = shape.dim();
  const auto positions = shape.positions();
  const auto frequencies = rope_frequencies(dim, qkv_theta);
  for (std::uint32_t t = 0; t < shape.tokens(); ++t) {
    for (std::uint32_t head = 0; head < shape.all_heads(); ++head) {
      const int kind = head < heads ? 0 : head < heads + key_heads ? 1 : 2;
      const std::uint32_t own = kind == 0 ? head : (head - heads) % key_heads;
      const Row row{shape, kind == 2 ? 0 : positions[t],
                    shape.norm && kind < 2 ? norms.data() + static_cast<std::size_t>(kind) * dim : nullptr, frequencies};
      visit(row, std::size_t{t} * shape.row() + std::size_t{head} * dim, (std::size_t{own} * shape.tokens() + t) * dim, kind);
    }
  }
}

}  // namespace

std::vector<std::uint32_t> QkvCase::positions() const {
  std::vector<std::uint32_t> result;
  for (const std::uint32_t length : attention.segments) {
    for (std::uint32_t i = 0; i < length; ++i) result.push_back(rope ? i : 0);
  }
  return result;
}

QkvReference attend_qkv(const QkvCase& shape, const std::vector<double>& qkv, std::span<const float> norms,
                        const std::vector<double>& d_o) {
  std::vector<double> heads[3];
  heads[0].resize(shape.attention.query_values());
  heads[1].resize(shape.attention.key_values());
  heads[2].resize(shape.attention.key_values());
  for_rows(shape, norms, [&](const Row& row, std::size_t from, std::size_t to, int kind) {
    const auto y = row.forward(&qkv[from]);
    std::copy(y.begin(), y.end(), heads[kind].begin() + static_cast<std::ptrdiff_t>(to));
  });
  QkvReference reference{attend(shape.attention, heads[0], heads[1], heads[2]), {}};
  if (d_o.empty()) return reference;
  const auto gradients = attend_backward(shape.attention, heads[0], heads[1], heads[2], d_o);
  reference.d_qkv.resize(qkv.size());
  for_rows(shape, norms, [&](const Row& row, std::size_t from, std::size_t to, int kind) {
    const auto& dy = kind == 0 ? gradients.dq : kind == 1 ? gradients.dk : gradients.dv;
    const auto begin = dy.begin() + static_cast<std::ptrdiff_t>(to);
    const auto dx = row.backward(&qkv[from], {begin, begin + shape.dim()});
    std::copy(dx.begin(), dx.end(), reference.d_qkv.begin() + static_cast<std::ptrdiff_t>(from));
  });
  return reference;
}

}  // namespace nibble::test
