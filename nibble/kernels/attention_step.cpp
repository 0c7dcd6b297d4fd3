#include "nibble/kernels/attention_step.h"

#include "nibble/base/error.h"
#include "nibble/kernels/attention_decode.h"
#include "nibble/kernels/key_cache.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace nibble {
namespace {

constexpr std::string_view in_attention_step = "attention_step";

void check_shapes(const AttentionStep& op) {
  expect_keys(op.k, op.v, in_attention_step);
  const std::uint32_t key_heads = op.k.dim(0), capacity = op.k.dim(1), dim = op.k.dim(2);
  check(dim % 16 == 0 && dim >= 16 && dim <= 256 && key_heads > 0 && op.heads > 0 && op.heads % key_heads == 0, in_attention_step,
        "{} heads on {} of {} values came.", op.heads, key_heads, dim);
  const std::uint32_t tokens = op.qkv.data.dim(0);
  check(tokens >= 1 && tokens <= std::min(attention_part_rows, capacity), in_attention_step, "{} tokens came for caches of {} rows; 1 to {} are possible.",
        tokens, capacity, std::min(attention_part_rows, capacity));
  expect_shape(op.qkv, tokens, (op.heads + 2 * key_heads) * dim, in_attention_step, "qkv");
  for (const Tensor* of_tokens : {&op.position, &op.key_begin, &op.key_end}) {
    expect_shape(*of_tokens, DType::u32, {tokens}, in_attention_step, "a position or a bound");
  }
  expect_shape(op.table, DType::f32, {op.table.dim(0), dim / 2, 2}, in_attention_step, "table");
  expect_shape(op.o, DType::f32, {tokens, op.heads * dim}, in_attention_step, "o");
  expect_shape(op.lse, DType::f32, {op.heads, tokens}, in_attention_step, "lse");
  check(static_cast<bool>(op.q_norm) == static_cast<bool>(op.k_norm), in_attention_step, "Norms of queries and keys must be given together.");
  if (!op.q_norm) return;
  for (const Tensor* weight : {&op.q_norm, &op.k_norm}) expect_shape(*weight, DType::f32, {dim}, in_attention_step, "a norm's weight");
}

// Whether subgroups have a lane for each vector of a key (attention_step_lanes.wgsl); else workgroups share tiles of keys.
bool by_lanes(const gpu::AdapterInfo& info, std::uint32_t head_dim) {
  constexpr std::uint32_t workgroup = 128;
  const std::uint32_t vectors = head_dim / 4, subgroup = info.subgroup_min_size;
  return info.subgroups && subgroup == info.subgroup_max_size && std::has_single_bit(vectors) && subgroup % vectors == 0 && workgroup % subgroup == 0;
}

gpu::Kernel step_kernel(gpu::Device& device, const AttentionStep& op, std::uint32_t heads, bool split) {
  const std::uint32_t dim = op.k.dim(2);
  gpu::Prelude prelude;
  const bool scaled = is_scaled(op.qkv), lanes = op.by_lanes.value_or(true) && by_lanes(device.info(), dim);
  if (scaled) prelude.enable("f16");
  if (lanes) prelude.enable("subgroups").constant("SUBGROUP", device.info().subgroup_min_size);
  declare_keys(prelude, op.k);
  prelude.alias("X", scaled ? "vec4<f16>" : "vec4<f32>").constant("SCALE_BINDING", 12u);
  prelude.constant("HEAD_DIM", dim).constant("HEADS", heads).constant("SPLIT", split).constant("NORM", static_cast<bool>(op.q_norm));
  const std::string_view scale = scaled ? "x_scale" : "x_scale_one";
  if (lanes) return kernel(device, "attention_step_lanes", prelude, {"attention", "attention_result", "subgroup_sums", "key_cache", "step_heads", scale}, "forward");
  return kernel(device, "attention_step", prelude, {"attention", "attention_result", "attention_decode", "key_cache", "step_heads", scale}, "forward");
}

}  // namespace

bool attention_step_fits(const gpu::Device& device, const AttentionStep& op) {
  return op.k.bytes() <= device.info().limits.max_binding;
}

void record(gpu::Recorder& recorder, const AttentionStep& op) {
  check_shapes(op);
  gpu::Device& device = recorder.device();
  const std::uint32_t key_heads = op.k.dim(0), dim = op.k.dim(2), group = op.heads / key_heads;
  const std::uint32_t tokens = op.qkv.data.dim(0), most_keys = op.most_keys > 0 ? op.most_keys : op.k.dim(1);
  const std::uint32_t heads = decode_heads(group);
  DecodeCut cut{.parts = 1, .keys = most_keys};
  if (op.parts.o) cut = decode_cut(device, tokens, most_keys, op.least_part_keys);
  const bool split = cut.parts > 1, norm = static_cast<bool>(op.q_norm);
  if (split) check_parts(op.parts, op.heads, dim);
  const AttentionParams params{.tokens = tokens, .capacity = op.k.dim(1), .heads = op.heads, .group = group, .first_head = 0, .first_token = 0,
                               .last_token = tokens, .more = 0, .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim))),
                               .parts = cut.parts, .part_keys = cut.keys, .eps = op.eps};
  std::vector<gpu::Binding> bindings{gpu::read(op.qkv.data), gpu::read_write(op.k), gpu::read_write(op.v), gpu::read(op.key_begin), gpu::read(op.position),
                                     gpu::write(split ? op.parts.o : op.o), gpu::write(split ? op.parts.numbers : op.lse), gpu::read(op.table),
                                     gpu::read(norm ? op.q_norm : op.table), gpu::read(norm ? op.k_norm : op.table), gpu::read(op.key_end)};
  if (is_scaled(op.qkv)) bindings.push_back(gpu::read(op.qkv.scale));
  recorder.dispatch_bytes(step_kernel(device, op, heads, split), bindings,
                          std::as_bytes(std::span<const AttentionParams, 1>(&params, 1)), {tokens, op.heads / heads, cut.parts},
                          {.bytes = 2.0 * static_cast<double>(size_of(op.k.dtype())) * tokens * most_keys * key_heads * dim, .flops = 4.0 * tokens * most_keys * op.heads * dim});
  if (split) record(recorder, PartsSum{.parts = op.parts, .params = params, .head_dim = dim, .heads = op.heads, .o = op.o, .lse = op.lse});
}

}  // namespace nibble
