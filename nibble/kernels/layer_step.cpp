#include "nibble/kernels/layer_step.h"

#include "nibble/base/error.h"
#include "nibble/kernels/key_cache.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace nibble {
namespace {

constexpr std::string_view in_layer_step = "layer_step";
constexpr std::uint32_t lane_elements = 16;
constexpr std::uint32_t storage_bindings = 16;
constexpr std::uint32_t most_parts = 16;  // of a head's keys
constexpr std::uint32_t most_workgroups = 1024;  // more than any adapter runs at one time
constexpr std::uint32_t exchange_begin = 64;     // words before the first region, where a binding may begin

// From so many elements of a layer's weights on pairs are faster: with Qwen3-1.7B's 50 million they gain 5%, with 0.6B's 16 million they
// lose 9%, on an H200.
constexpr std::uint64_t least_for_pairs = 32'000'000;

// From so many keys of a part on subgroups have two queries each: 12% faster with parts of 1,000, on an H200, as fast with 250, and 3% slower with 28.
constexpr std::uint32_t least_for_two_queries = 256;

// Of the table of pairs, of which each lane has a copy (lib/step_pairs.wgsl).
std::uint64_t pairs_bytes(std::uint32_t subgroup) { return 256ull * subgroup * 4; }

std::uint32_t ceil_div(std::uint32_t a, std::uint32_t b) { return (a + b - 1) / b; }

// Places of what is handed on, in words of a region.
struct Places {
  std::uint32_t input, qkv, parts, numbers, attended, middle, gated, lora, end;

  explicit Places(const LayerStepPlan& plan) {
    const LayerStepShape& s = plan.shape;
    std::uint32_t at = 0;
    const auto next = [&](std::uint32_t words) { return std::exchange(at, at + words); };
    const auto next_inputs = [&](std::uint32_t count) { return next(ceil_div(count, plan.span()) * plan.span()); };  // place() of the WGSL
    input = next_inputs(s.hidden);
    qkv = next((s.heads + 2 * s.key_heads) * s.head_dim);
    parts = next(s.heads * plan.most_parts * s.head_dim);
    numbers = next(2 * s.heads * plan.most_parts);
    attended = next_inputs(s.heads * s.head_dim);
    middle = next_inputs(s.hidden);
    gated = next_inputs(s.intermediate);
    lora = next(s.rank > 0 ? 4 * std::max(3 * s.rank, plan.workgroups) : 0);
    end = (at + 63) / 64 * 64;
  }
};

// A layer's vectors in the constants.
struct Constants {
  std::uint32_t attention_norm, mlp_norm, q_norm, k_norm, bias, end;

  explicit Constants(const LayerStepShape& s) {
    attention_norm = 0, mlp_norm = s.hidden, q_norm = 2 * s.hidden, k_norm = q_norm + s.head_dim, bias = k_norm + s.head_dim;
    end = bias + (s.bias ? (s.heads + 2 * s.key_heads) * s.head_dim : 0);
  }
};

// A product as layer_step.wgsl cuts it; see lib/step_product.wgsl.
struct Cut {
  std::uint32_t slices, sweeps, width, most_rows, shares, cost;

  Cut(std::uint32_t inputs, std::uint32_t units, std::uint32_t halves, std::uint32_t subgroup, std::uint32_t subgroups, std::uint32_t workgroups) {
    slices = ceil_div(inputs, subgroup * lane_elements);
    sweeps = ceil_div(slices, subgroups);
    width = ceil_div(slices, sweeps);
    const std::uint32_t most_units = ceil_div(units, workgroups);
    most_rows = most_units * halves;
    shares = most_rows * slices;
    const std::uint32_t rows = ceil_div(most_units, subgroups / width) * halves;
    cost = sweeps * ceil_div(rows, 4) * subgroups;
  }
};

std::array<Cut, 4> cuts_of(const LayerStepShape& s, std::uint32_t subgroup, std::uint32_t workgroup, std::uint32_t workgroups) {
  const auto cut = [&](std::uint32_t inputs, std::uint32_t units, std::uint32_t halves) {
    return Cut(inputs, units, halves, subgroup, workgroup / subgroup, workgroups);
  };
  return {cut(s.hidden, (s.heads + 2 * s.key_heads) * s.head_dim, 1), cut(s.heads * s.head_dim, s.hidden, 1),
          cut(s.hidden, s.intermediate, 2), cut(s.intermediate, s.hidden, 1)};
}

std::uint32_t most_rows(const LayerStepPlan& plan) {
  std::uint32_t most = 0;
  for (const Cut& cut : cuts_of(plan.shape, plan.subgroup, plan.workgroup, plan.workgroups)) most = std::max(most, cut.most_rows);
  return most;
}

// Whether a product's first codes are asked for at the end of the one before: by pairs 5% faster, in lanes 1 to 5% slower, on an H200, where with two
// queries registers are short. Products of several sweeps were not measured so.
bool asks_early(const LayerStepPlan& plan, std::uint32_t queries) {
  const auto cuts = cuts_of(plan.shape, plan.subgroup, plan.workgroup, plan.workgroups);
  return plan.pairs && queries == 1 && std::all_of(cuts.begin(), cuts.end(), [](const Cut& cut) { return cut.sweeps == 1; });
}

// See lib/step_lora_lanes.wgsl.
bool meets_adapters_by_lanes(const LayerStepPlan& plan) {
  constexpr std::uint32_t most_elements = 8;
  const std::uint32_t rank = plan.shape.rank;
  return std::has_single_bit(rank) && rank <= plan.subgroup && most_rows(plan) * rank <= most_elements * plan.workgroup;
}

std::uint32_t parts_of(const LayerStepShape& shape, std::uint32_t workgroups) { return std::clamp(workgroups / shape.key_heads, 2u, most_parts); }

std::uint64_t weight_elements(const LayerStepShape& s) {
  return std::uint64_t{s.hidden} * ((2 * s.heads + 2 * s.key_heads) * s.head_dim + 3 * s.intermediate);
}

bool wants_pairs(const gpu::AdapterInfo& info, const LayerStepShape& shape, StepLookups lookups) {
  if (lookups == StepLookups::in_lanes || !info.f16 || shape.rank > 0) return false;
  return lookups == StepLookups::in_pairs || weight_elements(shape) >= least_for_pairs;
}

// Room of workgroup memory for all but the table of pairs, in elements, and where the shares begin there.
void set_scratch(LayerStepPlan& plan) {
  const LayerStepShape& s = plan.shape;
  const std::uint32_t attended = ceil_div(s.heads * s.head_dim, plan.workgroups), fresh = (s.heads / s.key_heads + 2) * s.head_dim;
  const std::uint32_t attention = std::max(plan.workgroup / plan.subgroup * s.head_dim + fresh, 3 * attended * plan.most_parts);
  std::uint32_t inputs = 0, shares = 0;
  for (const Cut& cut : cuts_of(s, plan.subgroup, plan.workgroup, plan.workgroups)) {
    inputs = std::max(inputs, plan.pairs ? 0 : cut.width * plan.subgroup * (lane_elements + 1));
    shares = std::max(shares, cut.shares);
  }
  plan.shares_at = inputs;
  plan.scratch = std::max(attention, inputs + shares);
}

LayerStepPlan plan_for(const gpu::Device& device, const LayerStepShape& shape, StepLookups lookups, std::uint32_t workgroup, std::uint32_t workgroups) {
  const gpu::AdapterInfo& info = device.info();
  const std::uint32_t subgroup = info.subgroup_min_size;
  LayerStepPlan plan{.shape = shape, .subgroup = subgroup, .workgroup = workgroup, .workgroups = workgroups};
  plan.most_parts = parts_of(shape, workgroups);
  plan.pairs = wants_pairs(info, shape, lookups);
  set_scratch(plan);
  if (plan.pairs && plan.workgroup_bytes() > info.limits.workgroup_storage) {
    plan.pairs = false;
    set_scratch(plan);
  }
  // With more than half of the memory a workgroup is alone on its multiprocessor, so that registers do not decide how many run.
  const std::uint64_t alone = info.type == gpu::AdapterType::software ? 0 : info.limits.workgroup_storage / 2 + 64, bytes = plan.workgroup_bytes();
  if (bytes < alone) plan.scratch += static_cast<std::uint32_t>((alone - bytes) / 4);
  return plan;
}

// The workgroup size that leaves the fewest lanes idle, of those that the adapter has room for: a GPU needs some 512 lanes to have enough
// codes on their way.
std::optional<LayerStepPlan> best_plan(const gpu::Device& device, const LayerStepShape& shape, StepLookups lookups, std::uint32_t workgroups) {
  const gpu::AdapterInfo& info = device.info();
  const bool software = info.type == gpu::AdapterType::software;
  const std::uint32_t subgroup = info.subgroup_min_size, least = software ? 8 * subgroup : 512;
  const std::uint32_t most = std::min(software ? least : 768, info.limits.workgroup_invocations);
  std::optional<LayerStepPlan> best;
  std::uint32_t best_cost = 0;
  for (std::uint32_t size = least; size <= most; size += subgroup) {
    const LayerStepPlan plan = plan_for(device, shape, lookups, size, workgroups);
    if (size / subgroup <= shape.heads / shape.key_heads || plan.workgroup_bytes() > info.limits.workgroup_storage) continue;
    std::uint32_t cost = 0;
    for (const Cut& cut : cuts_of(shape, subgroup, size, workgroups)) cost += cut.cost;
    if (best && cost > best_cost) continue;
    best = plan, best_cost = cost;
  }
  return best;
}

bool suits(const gpu::AdapterInfo& info, const LayerStepShape& s) {
  return info.subgroups && info.subgroup_min_size == info.subgroup_max_size && info.subgroup_min_size >= 8 &&
         info.limits.storage_bindings >= storage_bindings && s.hidden % 64 == 0 && s.intermediate % 64 == 0 && s.head_dim % 8 == 0 &&
         s.heads * s.head_dim % 64 == 0 && s.heads % s.key_heads == 0;
}

struct LayerStepParams {
  std::uint32_t layers, region, constants, patience;
  float eps;
  std::uint32_t capacity, first_key, new_key, parts, part_keys, position, adapted = 0;
  std::uint32_t codes_stride, scales_stride, keys_stride, a_stride, b_stride, padding[3] = {};
  std::array<std::uint32_t, 8> a_begin{}, b_begin{};
  std::array<float, 8> scaling{};
};

gpu::Kernel step_kernel(gpu::Device& device, const LayerStepPlan& plan, CodeBook codes, const Tensor& keys, std::uint32_t queries) {
  const LayerStepShape& s = plan.shape;
  const Places places(plan);
  gpu::Prelude prelude;
  prelude.enable("subgroups");
  if (plan.pairs) prelude.enable("f16");
  else prelude.constant("SHARES_AT", plan.shares_at);
  prelude.constant("EARLY", asks_early(plan, queries)).constant("SUBGROUP", plan.subgroup).constant("WORKGROUP", plan.workgroup);
  prelude.constant("HIDDEN", s.hidden).constant("ATTENDED", s.heads * s.head_dim).constant("QKV", (s.heads + 2 * s.key_heads) * s.head_dim);
  prelude.constant("INTERMEDIATE", s.intermediate).constant("HEADS", s.heads).constant("KEY_HEADS", s.key_heads).constant("HEAD_DIM", s.head_dim);
  prelude.constant("HEAD_NORM", s.head_norm).constant("BIAS", s.bias).constant("RANK", s.rank).constant("WORKGROUPS", plan.workgroups);
  prelude.constant("SCRATCH", plan.scratch).constant("REGION", places.end).constant("INPUT_AT", places.input).constant("QKV_AT", places.qkv);
  prelude.constant("PARTS_AT", places.parts).constant("NUMBERS_AT", places.numbers).constant("ATTENDED_AT", places.attended);
  prelude.constant("MIDDLE_AT", places.middle).constant("GATED_AT", places.gated).constant("LORA_AT", places.lora);
  const Constants constants(s);
  prelude.constant("CONSTANTS", constants.end).constant("ATTENTION_NORM_AT", constants.attention_norm).constant("MLP_NORM_AT", constants.mlp_norm);
  prelude.constant("Q_NORM_AT", constants.q_norm).constant("K_NORM_AT", constants.k_norm).constant("BIAS_AT", constants.bias);
  // Lavapipe's compiler does.
  prelude.constant("LOADS_MOVE", device.info().type == gpu::AdapterType::software);
  declare_keys(prelude, keys);
  prelude.constant("QUERIES", queries);
  prelude.text(nf4_codes_text(codes));
  const bool by_lanes = meets_adapters_by_lanes(plan);
  if (by_lanes) prelude.constant("MOST_ROWS", most_rows(plan));
  const auto with = [&](auto... lora) {
    return kernel(device, "layer_step", prelude,
                  {"silu", "subgroup_codes", "subgroup_sums", "step_exchange", "step_product", plan.pairs ? "step_inputs_direct" : "step_inputs_shared",
                   plan.pairs ? "step_pairs" : "step_lanes", "key_cache", "step_attention", lora...});
  };
  return s.rank == 0 ? with("step_lora_none") : with("step_lora", by_lanes ? "step_lora_lanes" : "step_lora_rows");
}

void check_shapes(const LayerStep& op) {
  const LayerStepShape& s = op.plan.shape;
  const std::uint32_t qkv = (s.heads + 2 * s.key_heads) * s.head_dim, attended = s.heads * s.head_dim;
  expect_shape(op.input, DType::f32, {1, s.hidden}, in_layer_step, "input");
  expect_shape(op.output, DType::f32, {1, s.hidden}, in_layer_step, "output");
  const std::array<std::uint64_t, 4> sizes{std::uint64_t{qkv} * s.hidden, std::uint64_t{attended} * s.hidden,
                                           2ull * s.intermediate * s.hidden, std::uint64_t{s.intermediate} * s.hidden};
  for (std::size_t i = 0; i < 4; ++i) {
    check(op.weights[i].packed.bytes() * 2 == sizes[i] && op.weights[i].absmax.size() * 64 == sizes[i], in_layer_step,
          "Weight {} has {} packed bytes for {} elements.", i, op.weights[i].packed.bytes(), sizes[i]);
    check(op.weights[i].codes == op.weights[0].codes, in_layer_step, "The weights have different code books.");
  }
  expect_keys(op.k, op.v, in_layer_step);
  check(op.k.dim(0) == s.key_heads && op.k.dim(2) == s.head_dim, in_layer_step, "Caches of shape {} came for {} heads of {}.", op.k.shape_text(), s.key_heads,
        s.head_dim);
  check(op.layers >= 1 && op.layer + op.layers <= op.room.constants.dim(0), in_layer_step, "Layers {} to {} came; there is room for {}.", op.layer,
        op.layer + op.layers - 1, op.room.constants.dim(0));
  check(op.strides.weights % 8 == 0 && op.strides.keys % 16 == 0, in_layer_step, "Layers lie {} and {} bytes apart, which is no whole number of their elements.",
        op.strides.weights, op.strides.keys);
  check(op.new_key < op.k.dim(1) && op.keys >= 1 && op.keys <= op.new_key + 1, in_layer_step, "{} keys up to row {} came of caches of {}.",
        op.keys, op.new_key, op.k.dim(1));
}

void set_adapters(LayerStepParams& params, const LayerStep& op) {
  for (std::size_t i = 0; i < op.adapters.size(); ++i) {
    if (!op.adapters[i]) continue;
    params.adapted |= 1u << i;
    params.a_begin[i] = op.adapters[i]->a, params.b_begin[i] = op.adapters[i]->b, params.scaling[i] = op.adapters[i]->scaling;
  }
}

// Queries of a subgroup, by the keys of a part.
std::uint32_t queries_of(const LayerStepShape& s, std::uint32_t part_keys) {
  return s.heads / s.key_heads % 2 == 0 && part_keys >= least_for_two_queries ? 2 : 1;
}

LayerStepParams params_of(const LayerStep& op) {
  const LayerStepPlan& plan = op.plan;
  const std::uint32_t part_keys = ceil_div(op.keys, plan.most_parts);
  const auto in = [](std::uint64_t stride, std::uint64_t element) { return static_cast<std::uint32_t>(stride / element); };
  LayerStepParams params{.layers = op.layers, .region = exchange_begin + op.layer * plan.region(), .constants = op.layer * Constants(plan.shape).end,
                         .patience = plan.patience, .eps = op.eps, .capacity = op.k.dim(1), .first_key = op.new_key + 1 - op.keys,
                         .new_key = op.new_key, .parts = ceil_div(op.keys, part_keys), .part_keys = part_keys, .position = op.position,
                         .codes_stride = in(op.strides.weights, 8), .scales_stride = in(op.strides.weights, 4),
                         .keys_stride = in(op.strides.keys, 4 * size_of(op.k.dtype())), .a_stride = op.strides.a, .b_stride = op.strides.b};
  set_adapters(params, op);
  return params;
}

// All words from a tensor's first byte on to the end of one `behind` bytes behind it.
Tensor up_to_last(const Tensor& first, std::uint64_t behind) {
  return {first.buffer(), first.offset(), DType::u32, {static_cast<std::uint32_t>((first.bytes() + behind) / 4)}};
}

}  // namespace

std::uint32_t LayerStepPlan::span() const { return subgroup * lane_elements; }
std::uint32_t LayerStepPlan::region() const { return Places(*this).end; }

std::uint64_t LayerStepPlan::workgroup_bytes() const {
  const std::uint32_t subgroups = workgroup / subgroup, hidden_rows = 3 * shape.rank;
  const std::uint32_t adapter_sums = meets_adapters_by_lanes(*this) ? most_rows(*this) : 0;
  const std::uint32_t slices = ceil_div(shape.hidden, span()), squares = pairs ? slices : ceil_div(slices, subgroups) * subgroups;
  std::uint64_t bytes = pairs ? pairs_bytes(subgroup) : 0;
  for (const std::uint32_t words : {scratch, squares, subgroups, subgroups, hidden_rows, ceil_div(hidden_rows, workgroups) * subgroups, adapter_sums}) {
    bytes += ceil_div(words, 4) * 16;  // as Dawn counts each variable
  }
  return bytes;
}

std::uint32_t resident_workgroups(gpu::Device& device, std::uint32_t workgroup, std::uint64_t workgroup_bytes) {
  // Long enough for all that run at one time to begin.
  constexpr std::uint32_t gpu_patience = 2000, software_patience = 1000000;
  const Tensor arrived = device.tensor(DType::u32, {1}, "resident"), seen = device.tensor(DType::u32, {1}, "resident");
  gpu::Prelude prelude;
  prelude.constant("WORKGROUP", workgroup).constant("ROOM", static_cast<std::uint32_t>(workgroup_bytes / 4));
  struct Params {
    std::uint32_t patience;
  };
  const bool software = device.info().type == gpu::AdapterType::software;
  gpu::Recorder recorder(device);
  recorder.dispatch(kernel(device, "resident", prelude), {gpu::read_write(arrived), gpu::write(seen)},
                    Params{software ? software_patience : gpu_patience}, {software ? 64 : most_workgroups});
  recorder.submit();
  return device.read<std::uint32_t>(seen)[0];
}

std::optional<LayerStepPlan> layer_step_plan(gpu::Device& device, const LayerStepShape& shape, StepLookups lookups, std::uint32_t workgroups) {
  constexpr std::uint32_t guess = 128, gpu_patience = 1u << 20, software_patience = 1u << 24;
  if (!suits(device.info(), shape)) return {};
  auto plan = best_plan(device, shape, lookups, workgroups ? workgroups : guess);
  if (plan && !workgroups) {
    const std::uint64_t counted_with = plan->workgroup_bytes();
    const std::uint32_t resident = resident_workgroups(device, plan->workgroup, counted_with);
    plan = plan_for(device, shape, lookups, plan->workgroup, resident);
    // Fewer workgroups have more rows each.
    const std::uint64_t bytes = plan->workgroup_bytes();
    if (bytes > device.info().limits.workgroup_storage) return {};
    if (bytes > counted_with && resident_workgroups(device, plan->workgroup, bytes) < resident) return {};
  }
  if (plan) plan->patience = device.info().type == gpu::AdapterType::software ? software_patience : gpu_patience;
  return plan;
}

LayerStepRoom make_layer_step_room(gpu::Device& device, const LayerStepPlan& plan, std::span<const LayerStepVectors> layers) {
  const LayerStepShape& s = plan.shape;
  const Constants places(s);
  LayerStepRoom room{.exchange = device.tensor(DType::u32, {exchange_begin + static_cast<std::uint32_t>(layers.size()) * plan.region()}, "exchange"),
                     .constants = device.tensor(DType::f32, {static_cast<std::uint32_t>(layers.size()), places.end}, "constants")};
  gpu::Recorder recorder(device);
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    const auto put = [&](const Tensor& from, std::uint32_t at, std::uint32_t size, bool wanted) {
      check(static_cast<bool>(from) == wanted, in_layer_step, "A norm or a bias came that the plan has not, or the other way round.");
      if (!wanted) return;
      expect_shape(from, DType::f32, {size}, in_layer_step, "a vector");
      recorder.copy(from, room.constants.part(layer * places.end + at, {size}));
    };
    put(layers[layer].attention_norm, places.attention_norm, s.hidden, true);
    put(layers[layer].mlp_norm, places.mlp_norm, s.hidden, true);
    put(layers[layer].q_norm, places.q_norm, s.head_dim, s.head_norm);
    put(layers[layer].k_norm, places.k_norm, s.head_dim, s.head_norm);
    put(layers[layer].qkv_bias, places.bias, (s.heads + 2 * s.key_heads) * s.head_dim, s.bias);
  }
  recorder.submit();
  return room;
}

std::uint64_t layer_step_room_bytes(const gpu::AdapterInfo& info, const LayerStepShape& shape, std::uint32_t layers, std::uint32_t workgroups) {
  if (!suits(info, shape)) return 0;
  const LayerStepPlan plan{.shape = shape, .subgroup = info.subgroup_max_size, .workgroups = workgroups ? workgroups : most_workgroups,
                           .most_parts = workgroups ? parts_of(shape, workgroups) : most_parts};
  return gpu::buffer_bytes(4 * (exchange_begin + std::uint64_t{layers} * plan.region())) + gpu::buffer_bytes(4ull * layers * Constants(shape).end);
}

void clear(gpu::Recorder& recorder, const LayerStepRoom& room) {
  recorder.clear(room.exchange.part(exchange_begin, {static_cast<std::uint32_t>(room.exchange.size() - exchange_begin)}));
}

void record(gpu::Recorder& recorder, const LayerStep& op) {
  check_shapes(op);
  gpu::Device& device = recorder.device();
  const LayerStepPlan& plan = op.plan;
  const LayerStepParams params = params_of(op);
  const std::uint64_t between = op.layers - 1;
  double bytes = 2.0 * static_cast<double>(size_of(op.k.dtype())) * op.keys * plan.shape.key_heads * plan.shape.head_dim, flops = 0;
  std::vector<gpu::Binding> bindings{gpu::read_write(op.room.exchange)};
  for (const Nf4& w : op.weights) {
    bindings.push_back(gpu::read(up_to_last(w.packed, between * op.strides.weights)));
    bindings.push_back(gpu::read(up_to_last(w.absmax, between * op.strides.weights)));
    bytes += static_cast<double>(w.packed.bytes() + w.absmax.bytes()), flops += 4.0 * static_cast<double>(w.packed.bytes());
  }
  for (const gpu::Binding& binding : {gpu::read_write(up_to_last(op.k, between * op.strides.keys)), gpu::read_write(up_to_last(op.v, between * op.strides.keys)),
                                      gpu::read(op.table), gpu::read(op.room.constants), gpu::read(op.input), gpu::write(op.output)}) {
    bindings.push_back(binding);
  }
  if (plan.shape.rank > 0) bindings.push_back(gpu::read(op.lora ? op.lora : op.room.constants));
  const auto kernel = [&](std::uint32_t queries) { return step_kernel(device, plan, op.weights[0].codes, op.k, queries); };
  const std::uint32_t queries = queries_of(plan.shape, params.part_keys), most = queries_of(plan.shape, ceil_div(op.k.dim(1), plan.most_parts));
  // No token that comes later waits for its kernel.
  if (most > queries) recorder.prepare(kernel(most), bindings, sizeof params);
  recorder.dispatch_bytes(kernel(queries), bindings, std::as_bytes(std::span<const LayerStepParams, 1>(&params, 1)), {plan.workgroups},
                          {.bytes = op.layers * bytes, .flops = op.layers * flops});
}

}  // namespace nibble
