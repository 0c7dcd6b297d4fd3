#include "nibble/model/expert_mlp.h"

#include "nibble/base/error.h"
#include "nibble/kernels/expert_route.h"
#include "nibble/kernels/pack_rows.h"
#include "nibble/kernels/product.h"
#include "nibble/kernels/rms_norm.h"
#include "nibble/model/layer_arenas.h"

#include <algorithm>

namespace nibble {
namespace {

using Dims = std::initializer_list<std::uint32_t>;

// Enough for each expert to have some rows, and rooms that are small beside what layers keep.
constexpr std::uint32_t most_chunk_tokens = 2048;
constexpr std::uint32_t chunk_multiple = 64;  // of 4 bytes each: bindings may begin there

// Rows of experts lie in one binding each, as none but the device knows where an expert's begin.
std::uint32_t chunk_tokens(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  const std::uint64_t widest = std::max({config.hidden_size, config.experts.intermediate_size, options.rank});
  const std::uint64_t fit = device.info().limits.max_binding / (widest * sizeof(float) * config.experts.per_token);
  const std::uint64_t tokens = std::max(options.max_tokens, 1u);
  if (tokens <= std::min<std::uint64_t>(fit, most_chunk_tokens)) return static_cast<std::uint32_t>(tokens);
  check<DataError>(fit >= chunk_multiple, "experts", "The {} rows of {} values of {} tokens do not fit into a binding of {} bytes.",
                   chunk_multiple * config.experts.per_token, widest, chunk_multiple, device.info().limits.max_binding);
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(fit, most_chunk_tokens) / chunk_multiple * chunk_multiple);
}

}  // namespace

// A row for each row of the experts, or for each token.
struct ExpertMlp::Rows {
  Tensor values;
  bool by_token = false;
};

// What one of the three products is of.
struct ExpertMlp::Input {
  Projection projection;
  Rows x;
  Tensor h;  // the adapter's hidden values
};

struct ExpertMlp::Chunk {
  const At& at;
  gpu::Recorder& rec;
  const LayerWeights& weights;
  std::uint32_t begin, end;  // tokens
  Tensor x;
  Kept kept;
  Room room;
  std::optional<MatrixTile> tile;  // on matrix units
  ExpertRows rows = {};
};

// One description of every tensor serves making, viewing and counting: make(tensor, dtype, dims), called for each with the shape
// that it has for so many tokens.
template <typename Make>
void ExpertMlp::visit(Kept& kept, const ModelConfig& config, const LayersOptions& options, std::uint32_t tokens, const Make& make) {
  const ExpertConfig& experts = config.experts;
  const std::uint32_t slots = tokens * experts.per_token;
  make(kept.inv_rms, DType::f32, Dims{tokens});
  make(kept.logits, DType::f32, Dims{tokens, experts.count});
  make(kept.expert, DType::u32, Dims{tokens, experts.per_token});
  make(kept.weight, DType::f32, Dims{tokens, experts.per_token});
  make(kept.gate, DType::f32, Dims{slots, experts.intermediate_size});
  make(kept.up, DType::f32, Dims{slots, experts.intermediate_size});
  if (!options.expert_adapters) return;
  for (Tensor& h : kept.lora_h) make(h, DType::f32, Dims{slots, options.rank});
}

template <typename Make>
void ExpertMlp::visit(Room& room, const ModelConfig& config, const LayersOptions& options, std::uint32_t tokens, const Make& make) {
  const ExpertConfig& experts = config.experts;
  const std::uint32_t slots = tokens * experts.per_token;
  make(room.normed, DType::f32, Dims{tokens, config.hidden_size});
  make(room.z, DType::f32, Dims{slots, experts.intermediate_size});
  make(room.rows, DType::f32, Dims{slots, config.hidden_size});
  if (options.path == ProductPath::matrix) {
    make(room.packed.data, DType::f16, Dims{std::max(tokens * config.hidden_size, slots * experts.intermediate_size)});
    make(room.packed.scale, DType::f32, Dims{slots});
  }
  if (!options.trainable) return;
  make(room.d_normed, DType::f32, Dims{tokens, config.hidden_size});
  make(room.dz, DType::f32, Dims{slots, experts.intermediate_size});
  make(room.d_up, DType::f32, Dims{slots, experts.intermediate_size});
  make(room.d_weight, DType::f32, Dims{tokens, experts.per_token});
  make(room.d_logits, DType::f32, Dims{tokens, experts.count});
  if (options.expert_adapters) make(room.lora_dh, DType::f32, Dims{slots, options.rank});
}

ExpertMlp::ExpertMlp(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LayersOptions& options)
    : config_(config), weights_(weights), options_(options), chunk_tokens_(chunk_tokens(device, config, options)) {
  const auto allocate = [&](Tensor& tensor, DType dtype, Dims dims) { tensor = device.tensor(dtype, dims, "experts"); };
  LayerArenas arenas(device, activation_sets(options.activations, config.num_layers, LayerPart::mlp), "experts");
  kept_ = make_activation_sets<Kept>(options.activations, config.num_layers, [&](Kept& kept, LayerPart part) {
    if (part != LayerPart::mlp) return;
    arenas.begin_layer();
    visit(kept, config, options, options.max_tokens, [&](Tensor& tensor, DType dtype, Dims dims) { tensor = arenas.next(dtype, dims); });
  });
  visit(room_, config, options, chunk_tokens_, allocate);
  sort_room_ = make_expert_rows_room(device, config.experts.count, chunk_tokens_ * config.experts.per_token);
}

LayersBytes ExpertMlp::bytes(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  LayersBytes result;
  const std::uint32_t chunk = chunk_tokens(device, config, options);
  const auto count = [](std::uint64_t& bytes, std::uint32_t layers) {
    return [&bytes, layers](Tensor&, DType dtype, Dims dims) { bytes += LayerArenas::bytes(dtype, dims, layers); };
  };
  Kept kept;
  Room room;
  visit(kept, config, options, options.max_tokens,
        count(result.activations, activation_sets(options.activations, config.num_layers, LayerPart::mlp)));
  visit(room, config, options, chunk, count(result.scratch, 1));
  result.scratch += expert_rows_bytes(config.experts.count, chunk * config.experts.per_token);
  return result;
}

template <typename Visit>
void ExpertMlp::for_each_chunk(const At& at, const Tensor& x, Visit&& visit_chunk) const {
  const auto view = [](Tensor& tensor, DType, Dims dims) { tensor = tensor.view(dims); };
  for (std::uint32_t begin = 0; begin < x.dim(0); begin += chunk_tokens_) {
    const std::uint32_t end = std::min(begin + chunk_tokens_, x.dim(0));
    Chunk chunk{.at = at, .rec = at.recorder, .weights = weights_.layers[at.layer], .begin = begin, .end = end, .x = x.rows(begin, end),
                .kept = kept_[at.layer], .room = room_, .tile = {}};
    if (options_.path == ProductPath::matrix) {
      chunk.tile = expert_matrix_tile(at.recorder.device().info(), config_.experts.count, (end - begin) * config_.experts.per_token);
    }
    visit(chunk.kept, config_, options_, options_.max_tokens, [&](Tensor& tensor, DType, Dims dims) {
      const std::uint32_t per_token = *dims.begin() / options_.max_tokens;
      tensor = tensor.rows(begin * per_token, end * per_token);
    });
    visit(chunk.room, config_, options_, end - begin, view);
    visit_chunk(chunk);
  }
}

bool ExpertMlp::adapts(const At& at, Projection p) const { return at.lora && at.lora->slot(at.layer, p).used(); }

void ExpertMlp::norm(const Chunk& c) const {
  record(c.rec, RmsNorm{.x = c.x, .weight = c.weights.post_attention_norm, .rows = {}, .y = {.data = c.room.normed, .scale = {}},
                        .inv_rms = c.kept.inv_rms, .eps = config_.rms_norm_eps});
}

void ExpertMlp::weigh(const Chunk& c) const {
  record(c.rec, ExpertSwiGlu{.gate = c.kept.gate, .up = c.kept.up, .weight = c.kept.weight, .rows = c.rows, .z = c.room.z});
}

// From x to the gate and up products.
void ExpertMlp::up_to_gate(Chunk& c) const {
  norm(c);
  record(c.rec, ProductNT{.path = ProductPath::f32, .x = {.data = c.room.normed, .scale = {}}, .w = {.data = c.weights.router}, .y = c.kept.logits});
  record(c.rec, ExpertRoute{.logits = c.kept.logits, .normalised = config_.experts.normalised, .expert = c.kept.expert, .weight = c.kept.weight});
  sort(c);
  project(c, {.projection = Projection::gate, .x = {c.room.normed, true}, .h = c.kept.lora_h[0]}, c.kept.gate);
  project(c, {.projection = Projection::up, .x = {c.room.normed, true}, .h = c.kept.lora_h[1]}, c.kept.up);
}

void ExpertMlp::sort(Chunk& c) const {
  c.rows = record(c.rec, ExpertSort{.expert = c.kept.expert, .experts = config_.experts.count, .room = sort_room_,
                                    .tile_rows = c.tile ? c.tile->block_m : 0});
}

// The adapter's narrow product, which the backward pass reads too.
void ExpertMlp::narrow(const Chunk& c, const Input& input) const {
  if (!adapts(c.at, input.projection)) return;
  record_nt(c.rec, {.x = input.x.values, .w = {.values = c.at.lora->slot(c.at.layer, input.projection).a}, .rows = c.rows, .y = input.h,
                    .by_token = input.x.by_token});
}

// y [=|+=] x W^T, or x W, through the frozen weights.
void ExpertMlp::multiply(const Chunk& c, Projection p, MatrixLayout layout, const Rows& x, const Tensor& y, bool accumulate) const {
  const Nf4Matrix& matrix = weights_.projections(c.rec, c.at.layer)[static_cast<std::size_t>(p)];
  const Nf4 w{.packed = matrix.packed, .absmax = matrix.absmax, .codes = matrix.codes};
  if (const Tensor& cached = c.weights.cached(p); !c.tile || cached) {
    const ExpertProduct product{.x = x.values, .w = {.nf4 = w, .values = cached}, .rows = c.rows, .y = y, .by_token = x.by_token, .accumulate = accumulate};
    return layout == MatrixLayout::nt ? record_nt(c.rec, product) : record_nn(c.rec, product);
  }
  const std::uint32_t rows = x.values.dim(0);
  const Operand packed{c.room.packed.data.view({rows, x.values.dim(1)}), c.room.packed.scale.view({rows})};
  record(c.rec, PackRows{.x = x.values, .y = packed});
  const ExpertMatrixProduct product{.x = packed, .w = w, .largest = matrix.largest, .rows = c.rows, .y = y, .by_token = x.by_token,
                                    .accumulate = accumulate};
  layout == MatrixLayout::nt ? record_matrix_nt(c.rec, product) : record_matrix_nn(c.rec, product);
}

// y = x W^T + the adapters' share.
void ExpertMlp::project(const Chunk& c, const Input& input, const Tensor& y) const {
  multiply(c, input.projection, MatrixLayout::nt, input.x, y, false);
  narrow(c, input);
  if (!adapts(c.at, input.projection)) return;
  const LoraSlot& slot = c.at.lora->slot(c.at.layer, input.projection);
  record_nt(c.rec, {.x = input.h, .w = {.values = slot.b}, .rows = c.rows, .y = y, .accumulate = true, .scaling = slot.scaling});
}

// Adds to the gradients of the adapters, and gives dx = dy W + the adapters' share, added where `accumulate`.
void ExpertMlp::gradients(const Chunk& c, const Input& input, const Rows& dy, const Tensor& dx, bool accumulate) const {
  multiply(c, input.projection, MatrixLayout::nn, dy, dx, accumulate);
  if (!adapts(c.at, input.projection)) return;
  const LoraSlot& slot = c.at.lora->slot(c.at.layer, input.projection);
  const Tensor& dh = c.room.lora_dh;
  record_nn(c.rec, {.x = dy.values, .w = {.values = slot.b}, .rows = c.rows, .y = dh, .by_token = dy.by_token, .scaling = slot.scaling});
  record(c.rec, ExpertGradient{.narrow = input.h, .wide = dy.values, .rows = c.rows, .gradient = slot.b_grad, .by_token = dy.by_token, .turned = true,
                               .scaling = slot.scaling});
  record(c.rec, ExpertGradient{.narrow = dh, .wide = input.x.values, .rows = c.rows, .gradient = slot.a_grad, .by_token = input.x.by_token});
  record_nn(c.rec, {.x = dh, .w = {.values = slot.a}, .rows = c.rows, .y = dx, .accumulate = true});
}

void ExpertMlp::forward(const At& at, const Tensor& x, const Tensor& y) const {
  for_each_chunk(at, x, [&](Chunk& c) {
    up_to_gate(c);
    weigh(c);
    project(c, {.projection = Projection::down, .x = {c.room.z}, .h = c.kept.lora_h[2]}, c.room.rows);
    record(c.rec, ExpertSum{.x = c.room.rows, .rows = c.rows, .y = y.rows(c.begin, c.end), .plus = c.x});
  });
}

void ExpertMlp::recompute(const At& at, const Tensor& x) const {
  for_each_chunk(at, x, [&](Chunk& c) {
    up_to_gate(c);
    if (!adapts(at, Projection::down)) return;
    weigh(c);
    narrow(c, {.projection = Projection::down, .x = {c.room.z}, .h = c.kept.lora_h[2]});
  });
}

void ExpertMlp::backward(const At& at, const Tensor& x, const Tensor& dx) const {
  for_each_chunk(at, x, [&](Chunk& c) {
    const Tensor d_sum = dx.rows(c.begin, c.end);
    sort(c);
    if (adapts(at, Projection::gate) || adapts(at, Projection::up)) norm(c);
    if (adapts(at, Projection::down)) weigh(c);
    gradients(c, {.projection = Projection::down, .x = {c.room.z}, .h = c.kept.lora_h[2]}, {d_sum, true}, c.room.dz, false);
    const Tensor d_gate = c.room.z;  // which has been read for the last time
    record(c.rec, ExpertSwiGluBackward{.dz = c.room.dz, .gate = c.kept.gate, .up = c.kept.up, .weight = c.kept.weight, .rows = c.rows,
                                       .d_gate = d_gate, .d_up = c.room.d_up, .d_weight = c.room.d_weight});
    gradients(c, {.projection = Projection::up, .x = {c.room.normed, true}, .h = c.kept.lora_h[1]}, {c.room.d_up},
              c.room.rows, false);
    gradients(c, {.projection = Projection::gate, .x = {c.room.normed, true}, .h = c.kept.lora_h[0]}, {d_gate}, c.room.rows,
              true);
    record(c.rec, ExpertSum{.x = c.room.rows, .rows = c.rows, .y = c.room.d_normed});
    record(c.rec, ExpertRouteBackward{.logits = c.kept.logits, .normalised = config_.experts.normalised, .expert = c.kept.expert,
                                      .weight = c.kept.weight, .d_weight = c.room.d_weight, .d_logits = c.room.d_logits});
    record(c.rec, ProductNN{.path = ProductPath::f32, .x = {.data = c.room.d_logits, .scale = {}}, .w = {.data = c.weights.router},
                            .y = c.room.d_normed, .accumulate = true});
    record(c.rec, RmsNormBackward{.dy = c.room.d_normed, .x = c.x, .weight = c.weights.post_attention_norm, .inv_rms = c.kept.inv_rms, .rows = {},
                                  .dx = d_sum});
  });
}

}  // namespace nibble
