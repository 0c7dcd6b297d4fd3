#include "tests/train/reference_layer.h"

#include "nibble/quant/nf4.h"

#include <cmath>

namespace nibble::test {
namespace {

// x (T, K) times w (N, K) transposed.
template <typename Weights>
Matrix times_transposed(const Matrix& x, const Weights& w, std::size_t inputs) {
  const std::size_t rows = x.size() / inputs, outputs = w.size() / inputs;
  Matrix y(rows * outputs);
  for (std::size_t t = 0; t < rows; ++t) {
    for (std::size_t o = 0; o < outputs; ++o) {
      double sum = 0;
      for (std::size_t i = 0; i < inputs; ++i) sum += x[t * inputs + i] * w[o * inputs + i];
      y[t * outputs + o] = sum;
    }
  }
  return y;
}

// Every row of `width` values over its root mean square, times the weight.
Matrix rms_norm(const Matrix& x, const std::vector<float>& weight, double eps) {
  const std::size_t width = weight.size();
  Matrix y(x.size());
  for (std::size_t row = 0; row < x.size() / width; ++row) {
    double squares = 0;
    for (std::size_t i = 0; i < width; ++i) squares += x[row * width + i] * x[row * width + i];
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(width) + eps);
    for (std::size_t i = 0; i < width; ++i) y[row * width + i] = x[row * width + i] * inverse * weight[i];
  }
  return y;
}

// Rotation of the halves of each head by the position (rows of heads * head_dim).
void rotate(Matrix& x, std::size_t heads, std::size_t head_dim, double theta) {
  const std::size_t half = head_dim / 2, width = heads * head_dim;
  for (std::size_t t = 0; t < x.size() / width; ++t) {
    for (std::size_t h = 0; h < heads; ++h) {
      for (std::size_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(t) * std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
        double& first = x[t * width + h * head_dim + i];
        double& second = x[t * width + h * head_dim + half + i];
        const double a = first, b = second;
        first = a * std::cos(angle) - b * std::sin(angle);
        second = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
}

// Causal attention of one head; q, k, v and o are offset into rows of their widths.
void attend(const Matrix& q, const Matrix& k, const Matrix& v, Matrix& o, const ModelConfig& c, std::size_t head) {
  const std::size_t dim = c.head_dim, width = c.num_heads * dim, kv_width = c.num_kv_heads * dim;
  const std::size_t kv = head / (c.num_heads / c.num_kv_heads), rows = q.size() / width;
  for (std::size_t t = 0; t < rows; ++t) {
    std::vector<double> weights(t + 1);
    double sum = 0;
    for (std::size_t s = 0; s <= t; ++s) {
      double score = 0;
      for (std::size_t i = 0; i < dim; ++i) score += q[t * width + head * dim + i] * k[s * kv_width + kv * dim + i];
      weights[s] = std::exp(score / std::sqrt(static_cast<double>(dim)));
      sum += weights[s];
    }
    for (std::size_t s = 0; s <= t; ++s) {
      for (std::size_t i = 0; i < dim; ++i) o[t * width + head * dim + i] += weights[s] / sum * v[s * kv_width + kv * dim + i];
    }
  }
}

std::vector<float> read(const ModelState& state, const gpu::Tensor& tensor) { return state.device().read<float>(tensor); }

}  // namespace

Matrix reference_projection(const ModelState& state, std::uint32_t layer, Projection p, const Matrix& x,
                            const LoraProjection& lora) {
  const Nf4Projection& frozen = state.layers()[layer].at(p);
  std::vector<float> w(frozen.count());
  nf4_dequantize(frozen.packed, frozen.absmax, w);
  Matrix y = times_transposed(x, w, frozen.in_dim);
  if (!lora.used()) return y;
  const Matrix up = times_transposed(times_transposed(x, lora.a, lora.in_dim), lora.b, lora.rank);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += state.lora_config().scaling() * up[i];
  return y;
}

Matrix reference_mlp(const ModelState& state, std::uint32_t layer, const Matrix& x, const LoraLayer& lora) {
  const LayerWeights& weights = state.weights().layers[layer];
  const Matrix normed = rms_norm(x, read(state, weights.post_attention_norm), state.config().rms_norm_eps);
  Matrix hidden = reference_projection(state, layer, Projection::gate, normed, lora.gate);
  const Matrix up = reference_projection(state, layer, Projection::up, normed, lora.up);
  for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] *= up[i] / (1.0 + std::exp(-hidden[i]));
  Matrix y = reference_projection(state, layer, Projection::down, hidden, lora.down);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += x[i];
  return y;
}

Matrix reference_layer(const ModelState& state, std::uint32_t layer, const Matrix& hidden, const LoraLayer& lora) {
  const ModelConfig& c = state.config();
  const LayerWeights& weights = state.weights().layers[layer];
  const Matrix normed = rms_norm(hidden, read(state, weights.input_norm), c.rms_norm_eps);
  Matrix q = rms_norm(reference_projection(state, layer, Projection::q, normed, lora.q), read(state, weights.q_norm), c.rms_norm_eps);
  Matrix k = rms_norm(reference_projection(state, layer, Projection::k, normed, lora.k), read(state, weights.k_norm), c.rms_norm_eps);
  const Matrix v = reference_projection(state, layer, Projection::v, normed, lora.v);
  rotate(q, c.num_heads, c.head_dim, c.rope.theta);
  rotate(k, c.num_kv_heads, c.head_dim, c.rope.theta);
  Matrix attention(q.size());
  for (std::size_t head = 0; head < c.num_heads; ++head) attend(q, k, v, attention, c, head);
  Matrix middle = reference_projection(state, layer, Projection::o, attention, lora.o);
  for (std::size_t i = 0; i < middle.size(); ++i) middle[i] += hidden[i];
  return reference_mlp(state, layer, middle, lora);
}

}  // namespace nibble::test
