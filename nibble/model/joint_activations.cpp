#include "nibble/model/joint_activations.h"

#include "nibble/kernels/lora_matrix.h"
#include "nibble/kernels/product.h"
#include "nibble/model/alternating_room.h"
#include "nibble/model/layer_arenas.h"

#include <algorithm>
#include <bit>

namespace nibble {
namespace {

using Dims = std::initializer_list<std::uint32_t>;

// One description of every tensor serves making, viewing and counting: make(tensor, dtype, dims), called for each with the
// shape that it has for so many tokens.
template <typename Make>
void operand(Operand& o, std::uint32_t rows, std::uint32_t columns, const Make& make) {
  make(o.data, DType::f16, Dims{rows, columns});
  make(o.scale, DType::f32, Dims{rows});
}

std::uint32_t query_columns(const ModelConfig& config) { return config.num_heads * config.head_dim; }

template <typename Make>
void visit(JointActivations& a, LayerPart part, const ModelConfig& config, std::uint32_t tokens, std::uint32_t rank,
           const Make& make) {
  const auto lora_h = [&](Joint joint) {
    if (rank == 0) return;
    make(a.lora_h[static_cast<std::size_t>(joint)], DType::f16, Dims{tokens, joint_lora_shape(config, joint, rank).width()});
  };
  if (part == LayerPart::attention) {
    operand(a.qkv, tokens, joint_dims(config, Joint::qkv).out, make);
    operand(a.attention, tokens, query_columns(config), make);
    make(a.log_sum_exp, DType::f32, Dims{config.num_heads, tokens});
    make(a.middle, DType::f32, Dims{tokens, config.hidden_size});
    for (Tensor* per_token : {&a.attention_in_scale, &a.attention_in_inv_rms}) make(*per_token, DType::f32, Dims{tokens});
    lora_h(Joint::qkv);
    lora_h(Joint::o);
  } else if (!config.has_experts()) {
    operand(a.gate_up, tokens, 2 * config.intermediate_size, make);
    for (Tensor* per_token : {&a.mlp_in_scale, &a.mlp_in_inv_rms, &a.hidden_scale}) make(*per_token, DType::f32, Dims{tokens});
    lora_h(Joint::gate_up);
    lora_h(Joint::down);
  }
}

std::uint32_t mlp_rows(const LayersOptions& options, std::uint32_t tokens) {
  return options.mlp_chunk > 0 ? std::min(options.mlp_chunk, tokens) : tokens;
}

bool is_of_mlp(Joint joint) { return joint == Joint::gate_up || joint == Joint::down; }

// Room for `elements` and no more, whatever columns they have.
template <typename Make>
void flat(Tensor& data, DType dtype, std::uint64_t elements, const Make& make) {
  constexpr std::uint32_t columns = 64;
  make(data, dtype, Dims{static_cast<std::uint32_t>((elements + columns - 1) / columns), columns});
}

// `make` is called for what attention's own kernels find or leave, `turn` for the rest, which shares memory with theirs.
template <typename Make, typename Turn>
void visit(JointRoom& r, const ModelConfig& config, const LayersOptions& options, std::uint32_t tokens, const Make& make,
           const Turn& turn) {
  const std::uint32_t hidden = config.hidden_size, intermediate = config.has_experts() ? 0 : config.intermediate_size;
  const std::uint64_t rows = mlp_rows(options, tokens), queries = std::uint64_t{tokens} * query_columns(config);
  make(r.attention_in, DType::f16, Dims{tokens, hidden});
  if (intermediate > 0) {
    turn(r.mlp_in, DType::f16, Dims{mlp_rows(options, tokens), hidden});
    turn(r.hidden, DType::f16, Dims{mlp_rows(options, tokens), intermediate});
  }
  if (options.mlp_chunk > 0) visit(r.mlp, LayerPart::mlp, config, mlp_rows(options, tokens), options.rank, turn);
  if (!options.trainable) return;
  operand(r.dy, tokens, hidden, turn);
  flat(r.d_narrow.data, DType::f16, std::max(rows * intermediate, queries), make);
  flat(r.d_wide.data, DType::f16, std::max(2 * rows * intermediate, std::uint64_t{tokens} * joint_dims(config, Joint::qkv).out), make);
  for (Operand* narrow_or_wide : {&r.d_narrow, &r.d_wide}) make(narrow_or_wide->scale, DType::f32, Dims{tokens});
  turn(r.d_normed, DType::f32, Dims{tokens, hidden});
  if (options.rank == 0) return;
  turn(r.lora_dh, DType::f16, Dims{tokens, joint_lora_shape(config, Joint::qkv, options.rank).width()});
  if (options.use_dora) {
    turn(r.dora_y, DType::f32, Dims{tokens, hidden});
    std::uint32_t most = 0;
    for (const Joint joint : all_joints) most = std::max(most, JointLora::b_room(joint_lora_shape(config, joint, options.rank)));
    turn(r.dora_db, DType::f32, Dims{most});
  }
  if (!options.lora_dropout) return;
  flat(r.d_inputs, DType::f32, std::max(rows * intermediate, queries), turn);
  turn(r.lora_dh_values, DType::f32, Dims{tokens, options.rank});
}

struct View {
  void operator()(Tensor& t, DType, Dims dims) const { t = t.view(dims); }
};

struct Allocate {
  gpu::Device& device;
  std::string_view label;
  void operator()(Tensor& t, DType dtype, Dims dims) const { t = device.tensor(dtype, dims, label); }
};

struct Count {
  std::uint64_t& bytes;
  std::uint32_t layers = 1;
  void operator()(Tensor&, DType dtype, Dims dims) const { bytes += LayerArenas::bytes(dtype, dims, layers); }
};

QkvAttentionShape attention_shape(const ModelConfig& config, const LayersOptions& options) {
  return {.tokens = options.max_tokens, .heads = config.num_heads, .key_heads = config.num_kv_heads,
          .head_dim = config.head_dim, .path = ProductPath::matrix, .backward = options.trainable};
}

std::uint32_t lora_scratch_size(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  if (options.rank == 0) return 0;
  std::uint64_t most = 0;
  for (const Joint joint : single_joints(config)) {
    const std::uint32_t rows = is_of_mlp(joint) ? mlp_rows(options, options.max_tokens) : options.max_tokens;
    most = std::max(most, lora_matrix_scratch(device, joint_lora_shape(config, joint, options.rank), rows));
  }
  return static_cast<std::uint32_t>(most);
}

std::uint32_t product_scratch_size(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  const bool tiles = joint_weight_tile(device, config, options.max_tokens) > 0;
  const std::uint32_t cached = count_of(options.residency, config.num_layers, Residency::cached);
  std::vector<bool> forms;  // of weights: in rows, in tiles
  if (cached > 0 || !tiles) forms.push_back(false);
  if (cached < config.num_layers && tiles) forms.push_back(true);
  std::uint64_t most = 0;
  for (const Joint joint : single_joints(config)) {
    const auto [out, in] = joint_dims(config, joint);
    for (std::uint32_t tokens = options.trainable ? options.max_tokens : 1;; tokens *= 2) {
      const std::uint32_t rows = joint_plan_rows(options, joint, std::min(tokens, options.max_tokens));
      for (const bool tiled : forms) most = std::max(most, product_scratch(device, ProductPath::matrix, rows, out, in, tiled));
      if (tokens >= options.max_tokens) break;
    }
  }
  return static_cast<std::uint32_t>(most);
}

}  // namespace

std::vector<JointActivations> make_joint_activations(gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  ActivationArenas arenas(device, options.activations, config.num_layers);
  return make_activation_sets<JointActivations>(options.activations, config.num_layers, [&](JointActivations& set, LayerPart part) {
    if (part == LayerPart::mlp && options.mlp_chunk > 0) return;
    LayerArenas& arena = arenas.begin_layer(part);
    visit(set, part, config, options.max_tokens, options.rank,
          [&](Tensor& tensor, DType dtype, Dims dims) { tensor = arena.next(dtype, dims); });
  });
}

JointActivations first_tokens(const JointActivations& activations, const ModelConfig& config, const LayersOptions& options,
                              std::uint32_t tokens) {
  JointActivations result = activations;
  visit(result, LayerPart::attention, config, tokens, options.rank, View{});
  if (options.mlp_chunk == 0) visit(result, LayerPart::mlp, config, tokens, options.rank, View{});
  return result;
}

namespace {

// All of a room but what `make` is called for.
AlternatingRoom lay_out(JointRoom& room, const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  AlternatingRoom turns;
  const auto in = [&](AlternatingRoom::Group group) {
    return [&turns, group](Tensor& t, DType dtype, Dims dims) { turns.add(group, t, dtype, dims); };
  };
  const auto turn = in(AlternatingRoom::first);
  visit(room, config, options, options.max_tokens, [](auto&&...) {}, turn);
  if (const std::uint32_t size = lora_scratch_size(device, config, options)) turn(room.lora_scratch, DType::f32, Dims{size});
  if (const std::uint32_t size = product_scratch_size(device, config, options)) turn(room.product_scratch, DType::f32, Dims{size});
  lay_out(room.attention, device, attention_shape(config, options), in(AlternatingRoom::second));
  return turns;
}

}  // namespace

JointRoom make_joint_room(gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  JointRoom result;
  visit(result, config, options, options.max_tokens, Allocate{device, "scratch"}, [](auto&&...) {});
  lay_out(result, device, config, options).make(device, "scratch");
  return result;
}

JointRoom first_tokens(const JointRoom& room, const ModelConfig& config, const LayersOptions& options, std::uint32_t tokens) {
  JointRoom result = room;
  visit(result, config, options, tokens, View{}, View{});
  return result;
}

JointActivations chunk_of(const JointActivations& of, const JointRoom& room, const ModelConfig& config, const LayersOptions& options,
                          std::uint32_t begin, std::uint32_t end) {
  JointActivations result = room.mlp;
  visit(result, LayerPart::mlp, config, end - begin, options.rank, View{});
  result.middle = of.middle.rows(begin, end);
  return result;
}

JointRoom chunk_of(const JointRoom& room, const ModelConfig& config, const LayersOptions& options, std::uint32_t begin, std::uint32_t end) {
  JointRoom result = first_tokens(room, config, options, end - begin);
  if (options.trainable) result.dy = {.data = room.dy.data.rows(begin, end), .scale = room.dy.scale.rows(begin, end)};
  return result;
}

std::uint32_t joint_plan_rows(const LayersOptions& options, Joint joint, std::uint32_t tokens) {
  if (!options.trainable) return std::min(std::bit_ceil(tokens), options.max_tokens);
  return is_of_mlp(joint) ? mlp_rows(options, options.max_tokens) : options.max_tokens;
}

Operand narrowed(const Operand& operand, std::uint32_t columns) {
  return {.data = operand.data.view({operand.scale.dim(0), columns}), .scale = operand.scale};
}

std::uint64_t joint_activation_bytes(const ModelConfig& config, const LayersOptions& options) {
  std::uint64_t all = 0;
  for (const LayerPart part : {LayerPart::attention, LayerPart::mlp}) {
    if (part == LayerPart::mlp && options.mlp_chunk > 0) continue;
    JointActivations unused;
    visit(unused, part, config, options.max_tokens, options.rank, Count{all, activation_sets(options.activations, config.num_layers, part)});
  }
  return all;
}

std::uint64_t joint_room_bytes(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  JointRoom unused;
  std::uint64_t bytes = lay_out(unused, device, config, options).bytes();
  visit(unused, config, options, options.max_tokens, Count{bytes}, [](auto&&...) {});
  return bytes;
}

}  // namespace nibble
