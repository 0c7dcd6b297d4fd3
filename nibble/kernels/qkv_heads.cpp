#include "nibble/kernels/qkv_heads.h"

#include "nibble/base/error.h"
#include "nibble/kernels/key_cache.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>
#include <bit>

namespace nibble {
namespace {

constexpr std::string_view in_qkv_heads = "qkv_heads";

struct QkvHeadsParams {
  std::uint32_t tokens, heads, key_heads, capacity, first_head;
  float eps;
};

void check_shapes(const QkvHeads& op) {
  const std::uint32_t heads = op.q.dim(0), tokens = op.q.dim(1), dim = op.q.dim(2);
  const std::uint32_t key_heads = op.k.dim(0), capacity = op.k.dim(1);
  check(dim % 8 == 0 && tokens <= capacity, in_qkv_heads, "{} rows of {} values do not fit into {}.", tokens, dim, op.k.shape_text());
  expect_shape(op.qkv, tokens, (heads + 2 * key_heads) * dim, in_qkv_heads, "qkv");
  expect_keys(op.k, op.v, in_qkv_heads);
  expect_shape(op.k, op.k.dtype(), {key_heads, capacity, dim}, in_qkv_heads, "k");
  expect_shape(op.position, DType::u32, {tokens}, in_qkv_heads, "position");
  expect_shape(op.key_end, DType::u32, {tokens}, in_qkv_heads, "key_end");
  expect_shape(op.table, DType::f32, {op.table.dim(0), dim / 2, 2}, in_qkv_heads, "table");
  check(static_cast<bool>(op.q_norm) == static_cast<bool>(op.k_norm), in_qkv_heads, "Norms of queries and keys must be given together.");
  if (!op.q_norm) return;
  for (const Tensor* weight : {&op.q_norm, &op.k_norm}) expect_shape(*weight, DType::f32, {dim}, in_qkv_heads, "a norm's weight");
}

}  // namespace

bool qkv_heads_fits(const gpu::Device& device, const QkvHeads& op) {
  const auto fits = [&](const Tensor& tensor) { return tensor.bytes() <= device.info().limits.max_binding; };
  return fits(op.qkv.data) && fits(op.q) && fits(op.k) && fits(op.v);
}

void record(gpu::Recorder& recorder, const QkvHeads& op) {
  constexpr std::uint32_t workgroup = 64;
  gpu::Device& device = recorder.device();
  const std::uint32_t heads = op.q.dim(0), tokens = op.q.dim(1), dim = op.q.dim(2);
  const std::uint32_t key_heads = op.k.dim(0), capacity = op.k.dim(1);
  const std::uint32_t first_head = op.keys_only ? heads : 0;
  const std::uint32_t rows = tokens * (heads + 2 * key_heads - first_head);
  check_shapes(op);
  const bool norm = static_cast<bool>(op.q_norm), scaled = is_scaled(op.qkv);
  // As for qk_norm_rope.h: a processor is fastest without workgroup memory.
  const bool software = op.kernel_for.value_or(device.info().type) == gpu::AdapterType::software;
  const std::uint32_t lanes = software ? 1 : std::min(16u, std::bit_floor(dim / 8));
  gpu::Prelude prelude;
  if (scaled) prelude.enable("f16");
  declare_keys(prelude, op.k);
  prelude.alias("X", scaled ? "vec4<f16>" : "vec4<f32>").constant("SCALE_BINDING", 10u);
  prelude.constant("HEAD_DIM", dim).constant("WORKGROUP", workgroup).constant("LANES", lanes).constant("NORM", norm);
  std::vector<gpu::Binding> bindings{gpu::read(op.qkv.data), gpu::write(op.q), gpu::write(op.k), gpu::write(op.v), gpu::read(op.position), gpu::read(op.table),
                                     gpu::read(norm ? op.q_norm : op.table), gpu::read(norm ? op.k_norm : op.table), gpu::read(op.key_end)};
  if (scaled) bindings.push_back(gpu::read(op.qkv.scale));
  const QkvHeadsParams params{tokens, heads, key_heads, capacity, first_head, op.eps};
  recorder.dispatch_bytes(kernel(device, "qkv_heads", prelude, {"grid", "key_cache", scaled ? "x_scale" : "x_scale_one"}, "main"), bindings,
                          std::as_bytes(std::span<const QkvHeadsParams, 1>(&params, 1)), gpu::linear_grid(device, (rows * lanes + workgroup - 1) / workgroup),
                          {.bytes = 8.0 * rows * dim, .flops = 8.0 * rows * dim});
}

}  // namespace nibble
