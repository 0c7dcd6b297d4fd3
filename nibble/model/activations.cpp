#include "nibble/model/activations.h"

#include "nibble/kernels/lora.h"
#include "nibble/model/layer_arenas.h"

#include <algorithm>

namespace nibble {
namespace {

// Widths of the tensors, from the config.
struct Widths {
  std::uint32_t hidden, q, kv, intermediate, heads, kv_heads, head_dim;  // intermediate: 0 where experts are in the MLP's place

  explicit Widths(const ModelConfig& config)
      : hidden(config.hidden_size),
        q(config.num_heads * config.head_dim),
        kv(config.num_kv_heads * config.head_dim),
        intermediate(config.has_experts() ? 0 : config.intermediate_size),
        heads(config.num_heads),
        kv_heads(config.num_kv_heads),
        head_dim(config.head_dim) {}
};

// One description of every buffer serves making, viewing and counting: `Maker` has tensor(t, dims), operand(o, rows, columns)
// and packed(o, source, rows, columns), called for each member with the shape that it has for `tokens` tokens. A packed
// operand is the f16 form of a tensor, and in f32 that tensor itself.
template <typename Maker>
void visit_attention(LayerActivations& a, const Widths& w, std::uint32_t tokens, std::uint32_t rank, Maker&& make) {
  make.operand(a.attention_in, tokens, w.hidden);
  make.tensor(a.attention_in_inv_rms, {tokens});
  make.tensor(a.q, {tokens, w.q});
  make.tensor(a.k, {tokens, w.kv});
  make.tensor(a.q_inv_rms, {tokens, w.heads});
  make.tensor(a.k_inv_rms, {tokens, w.kv_heads});
  make.tensor(a.q_heads, {w.heads, tokens, w.head_dim});
  make.tensor(a.k_heads, {w.kv_heads, tokens, w.head_dim});
  make.tensor(a.v_heads, {w.kv_heads, tokens, w.head_dim});
  make.tensor(a.attention, {tokens, w.q});
  make.tensor(a.log_sum_exp, {w.heads, tokens});
  make.packed(a.attention_packed, a.attention, tokens, w.q);
  make.tensor(a.middle, {tokens, w.hidden});
  if (rank == 0) return;
  for (const Projection p : {Projection::q, Projection::k, Projection::v, Projection::o}) {
    make.tensor(a.lora_h[static_cast<std::size_t>(p)], {tokens, rank});
  }
}

template <typename Maker>
void visit_mlp(LayerActivations& a, const Widths& w, std::uint32_t tokens, std::uint32_t rank, Maker&& make) {
  if (w.intermediate == 0) return;
  make.operand(a.mlp_in, tokens, w.hidden);
  make.tensor(a.mlp_in_inv_rms, {tokens});
  make.tensor(a.gate, {tokens, w.intermediate});
  make.tensor(a.up, {tokens, w.intermediate});
  make.operand(a.mlp_hidden, tokens, w.intermediate);
  if (rank == 0) return;
  for (const Projection p : {Projection::gate, Projection::up, Projection::down}) {
    make.tensor(a.lora_h[static_cast<std::size_t>(p)], {tokens, rank});
  }
}

template <typename Maker>
void visit(LayerActivations& a, LayerPart part, const Widths& w, std::uint32_t tokens, std::uint32_t rank, Maker&& make) {
  if (part == LayerPart::attention) {
    visit_attention(a, w, tokens, rank, make);
  } else {
    visit_mlp(a, w, tokens, rank, make);
  }
}

template <typename Maker>
void visit(Scratch& s, const Widths& w, std::uint32_t tokens, std::uint32_t mlp_tokens, std::uint32_t rank, bool use_dora, bool trainable, Maker&& make) {
  make.tensor(s.v, {tokens, w.kv});
  if (!trainable) return;
  make.packed(s.dy, Tensor{}, tokens, w.hidden);
  if (w.intermediate > 0) {
    make.tensor(s.d_hidden, {mlp_tokens, w.intermediate});
    make.operand(s.d_gate, mlp_tokens, w.intermediate);
    make.operand(s.d_up, mlp_tokens, w.intermediate);
  }
  make.tensor(s.d_normed, {tokens, w.hidden});
  make.tensor(s.d_attention, {tokens, w.q});
  make.tensor(s.attention_delta, {w.heads, tokens});
  make.tensor(s.dq_heads, {w.heads, tokens, w.head_dim});
  make.tensor(s.dk_heads, {w.kv_heads, tokens, w.head_dim});
  make.tensor(s.dv_heads, {w.kv_heads, tokens, w.head_dim});
  make.tensor(s.dq, {tokens, w.q});
  make.tensor(s.dk, {tokens, w.kv});
  make.tensor(s.dv, {tokens, w.kv});
  make.packed(s.dq_packed, s.dq, tokens, w.q);
  make.packed(s.dk_packed, s.dk, tokens, w.kv);
  make.packed(s.dv_packed, s.dv, tokens, w.kv);
  if (rank > 0) make.tensor(s.lora_dh, {tokens, rank});
  if (!use_dora) return;
  make.tensor(s.dora_y, {tokens, w.hidden});
  make.tensor(s.dora_db, {std::max({w.hidden, w.q, w.kv, w.intermediate}), rank});
}

// Elements of scratch that the widest projection needs.
std::uint64_t lora_scratch_size(const gpu::Device& device, const ActivationShape& shape) {
  std::uint64_t most = 0;
  for (const Projection p : single_projections(*shape.config)) {
    const auto [out, in] = projection_dims(*shape.config, p);
    const bool of_mlp = p == Projection::gate || p == Projection::up || p == Projection::down;
    if (shape.rank > 0) most = std::max(most, lora_scratch(device, of_mlp ? shape.mlp_tokens() : shape.tokens, out, in, shape.rank));
  }
  return most;
}

struct Allocate {
  LayerArenas& arenas;
  ProductPath path;
  void tensor(Tensor& t, std::initializer_list<std::uint32_t> dims) const { t = arenas.next(DType::f32, dims); }
  void operand(Operand& o, std::uint32_t rows, std::uint32_t columns) const {
    o.data = arenas.next(operand_dtype(path), {rows, columns});
    if (path != ProductPath::f32) o.scale = arenas.next(DType::f32, {rows});
  }
  void packed(Operand& o, const Tensor& source, std::uint32_t rows, std::uint32_t columns) const {
    if (path == ProductPath::f32) {
      o = {.data = source};
    } else {
      operand(o, rows, columns);
    }
  }
};

struct View {
  void tensor(Tensor& t, std::initializer_list<std::uint32_t> dims) const { t = t.view(dims); }
  void operand(Operand& o, std::uint32_t rows, std::uint32_t) const { o = first_rows(o, rows); }
  void packed(Operand& o, const Tensor& source, std::uint32_t rows, std::uint32_t columns) const {
    if (o.scale) {
      operand(o, rows, columns);
    } else {
      o = {.data = source};
    }
  }
};

struct Count {
  ProductPath path;
  std::uint64_t& bytes;
  std::uint32_t layers = 1;
  void tensor(Tensor&, std::initializer_list<std::uint32_t> dims) const { bytes += LayerArenas::bytes(DType::f32, dims, layers); }
  void operand(Operand&, std::uint32_t rows, std::uint32_t columns) const {
    bytes += LayerArenas::bytes(operand_dtype(path), {rows, columns}, layers);
    if (path != ProductPath::f32) bytes += LayerArenas::bytes(DType::f32, {rows}, layers);
  }
  void packed(Operand& o, const Tensor&, std::uint32_t rows, std::uint32_t columns) const {
    if (path != ProductPath::f32) operand(o, rows, columns);
  }
};

}  // namespace

std::vector<LayerActivations> make_layer_activations(gpu::Device& device, const ActivationShape& shape,
                                                     const ActivationChoices& choices) {
  ActivationArenas arenas(device, choices, shape.config->num_layers);
  return make_activation_sets<LayerActivations>(choices, shape.config->num_layers, [&](LayerActivations& set, LayerPart part) {
    if (part == LayerPart::mlp && shape.mlp_chunk > 0) return;
    visit(set, part, Widths(*shape.config), shape.tokens, shape.rank, Allocate{arenas.begin_layer(part), shape.path});
  });
}

LayerActivations first_tokens(const LayerActivations& activations, const ModelConfig& config, std::uint32_t tokens) {
  LayerActivations result = activations;
  const std::uint32_t rank = result.lora_h[0] ? result.lora_h[0].dim(1) : 0;
  visit(result, LayerPart::attention, Widths(config), tokens, rank, View{});
  if (result.gate) visit(result, LayerPart::mlp, Widths(config), tokens, rank, View{});
  return result;
}

LayerActivations make_mlp_chunk(gpu::Device& device, const ActivationShape& shape) {
  LayerActivations result;
  LayerArenas one(device, 1, "activation");
  one.begin_layer();
  visit(result, LayerPart::mlp, Widths(*shape.config), shape.mlp_tokens(), shape.rank, Allocate{one, shape.path});
  return result;
}

LayerActivations chunk_of(const LayerActivations& of, const LayerActivations& mlp_chunk, const ModelConfig& config, std::uint32_t begin,
                          std::uint32_t end) {
  LayerActivations result = mlp_chunk;
  const Tensor& h = mlp_chunk.lora_h[static_cast<std::size_t>(Projection::down)];
  visit(result, LayerPart::mlp, Widths(config), end - begin, h ? h.dim(1) : 0, View{});
  result.middle = of.middle.rows(begin, end);
  return result;
}

Scratch make_scratch(gpu::Device& device, const ActivationShape& shape, bool trainable) {
  Scratch result;
  LayerArenas one(device, 1, "scratch");
  one.begin_layer();
  visit(result, Widths(*shape.config), shape.tokens, shape.mlp_tokens(), shape.rank, shape.use_dora, trainable, Allocate{one, shape.path});
  const std::uint64_t partial_sums = lora_scratch_size(device, shape);
  if (trainable && partial_sums > 0) {
    result.lora_scratch = device.tensor(DType::f32, {static_cast<std::uint32_t>(partial_sums)}, "LoRA scratch");
  }
  return result;
}

Scratch first_tokens(const Scratch& scratch, const ModelConfig& config, std::uint32_t tokens) {
  Scratch result = scratch;
  const std::uint32_t rank = result.lora_dh ? result.lora_dh.dim(1) : 0;
  const std::uint32_t mlp_tokens = result.d_hidden ? std::min(tokens, result.d_hidden.dim(0)) : tokens;
  visit(result, Widths(config), tokens, mlp_tokens, rank, static_cast<bool>(result.dora_y), static_cast<bool>(result.d_normed), View{});
  return result;
}

std::uint64_t layer_activation_bytes(const ActivationShape& shape, LayerPart part, std::uint32_t layers) {
  std::uint64_t bytes = 0;
  LayerActivations unused;
  visit(unused, part, Widths(*shape.config), part == LayerPart::mlp ? shape.mlp_tokens() : shape.tokens, shape.rank, Count{shape.path, bytes, layers});
  return bytes;
}

std::uint64_t scratch_bytes(const gpu::Device& device, const ActivationShape& shape, bool trainable) {
  const std::uint64_t partial_sums = trainable ? lora_scratch_size(device, shape) : 0;
  std::uint64_t bytes = partial_sums > 0 ? gpu::buffer_bytes(4 * partial_sums) : 0;
  Scratch unused;
  visit(unused, Widths(*shape.config), shape.tokens, shape.mlp_tokens(), shape.rank, shape.use_dora, trainable, Count{shape.path, bytes});
  return bytes;
}

}  // namespace nibble
