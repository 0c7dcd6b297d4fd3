#include "nibble/kernels/pack_heads.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr std::string_view in_pack_heads = "pack_heads";

struct PackHeadsParams {
  std::uint32_t tokens;
  float eps;
  std::uint32_t first = 0, end;  // tokens of this dispatch
};

// What both directions are given.
struct Heads {
  const Operand& qkv;
  std::uint32_t heads, key_heads;
  const Tensor &q_norm, &k_norm, &position, &table;

  std::uint32_t tokens() const { return qkv.data.dim(0); }
  std::uint32_t head_dim() const { return qkv.data.dim(1) / (heads + 2 * key_heads); }
};

void check_heads(const Heads& op) {
  check(is_scaled(op.qkv) && op.qkv.data.rank() == 2, in_pack_heads, "The projection is not an f16 operand.");
  check(op.heads > 0 && op.key_heads > 0 && op.heads % op.key_heads == 0, in_pack_heads,
        "{} query heads cannot share {} key heads evenly.", op.heads, op.key_heads);
  const std::uint32_t dim = op.head_dim();
  check((dim == 64 || dim == 128) && op.qkv.data.dim(1) == (op.heads + 2 * op.key_heads) * dim, in_pack_heads,
        "A projection of shape {} does not hold {} + 2 x {} heads of 64 or 128.", op.qkv.data.shape_text(), op.heads,
        op.key_heads);
  check(static_cast<bool>(op.q_norm) == static_cast<bool>(op.k_norm), in_pack_heads, "Queries and keys have norms, or neither.");
  check(!op.q_norm || (op.q_norm.size() == dim && op.k_norm.size() == dim), in_pack_heads,
        "Norm weights of {} and {} were given for heads of {}.", op.q_norm.size(), op.k_norm.size(), dim);
  check(op.position && op.position.size() >= op.tokens() && op.table.rank() == 3 && op.table.dim(1) == dim / 2, in_pack_heads,
        "Positions and a table of shape {} do not match {} tokens and heads of {}.", op.table.shape_text(), op.tokens(), dim);
}

gpu::Kernel kernel_of(gpu::Device& device, const Heads& op, std::string_view direction, std::uint32_t parts) {
  const auto& info = device.info();
  // The software adapter runs a workgroup on one core, and pays for each further subgroup at a barrier.
  const std::uint32_t workgroup = info.type == gpu::AdapterType::software ? info.subgroup_max_size : 256;
  gpu::Prelude prelude;
  prelude.enable("f16").enable("subgroups").constant("HEAD_DIM", op.head_dim()).constant("HEADS", op.heads);
  prelude.constant("KEY_HEADS", op.key_heads).constant("NORM", static_cast<bool>(op.q_norm)).constant("PARTS", parts);
  prelude.constant("WORKGROUP", workgroup).constant("SUBGROUP", info.subgroup_max_size);
  prelude.constant("LANES", std::min(info.subgroup_max_size, op.head_dim() / 8));
  return kernel(device, "pack_heads", prelude, {"grid", "row_reduce", "row_scale"}, direction);
}

// Stands in where there is no norm, since kernels have fixed bindings.
const Tensor& or_table(const Tensor& norm, const Tensor& table) { return norm ? norm : table; }

}  // namespace

void record(gpu::Recorder& recorder, const PackHeads& op) {
  const Heads heads{op.qkv, op.heads, op.key_heads, op.q_norm, op.k_norm, op.position, op.table};
  check_heads(heads);
  const std::uint32_t tokens = heads.tokens(), dim = heads.head_dim();
  expect_shape(op.qk, tokens, (op.heads + op.key_heads) * dim, in_pack_heads, "qk");
  check(is_scaled(op.qk), in_pack_heads, "The result is not an f16 operand.");
  expect_shape(op.v_most, DType::f32, {tokens}, in_pack_heads, "v_most");
  auto& device = recorder.device();
  using gpu::read, gpu::write;
  recorder.dispatch(kernel_of(device, heads, "forward", 1),
                    {read(op.qkv.data), read(op.qkv.scale), read(op.position), read(op.table),
                     read(or_table(op.q_norm, op.table)), read(or_table(op.k_norm, op.table)), write(op.qk.data),
                     write(op.qk.scale), write(op.v_most)},
                    PackHeadsParams{.tokens = tokens, .eps = op.eps, .end = tokens}, gpu::linear_grid(device, tokens),
                    {.bytes = static_cast<double>(op.qkv.data.bytes() + op.qk.data.bytes())});
}

void record(gpu::Recorder& recorder, const PackHeadsBackward& op) {
  const Heads heads{op.qkv, op.heads, op.key_heads, op.q_norm, op.k_norm, op.position, op.table};
  check_heads(heads);
  const std::uint32_t tokens = heads.tokens(), dim = heads.head_dim();
  expect_shape(op.dq, DType::f32, {tokens, op.heads * dim}, in_pack_heads, "dq");
  check(op.dkv.rank() == 3, in_pack_heads, "dkv has shape {}.", op.dkv.shape_text());
  expect_shape(op.dkv, DType::f32, {op.dkv.dim(0), tokens, 2 * op.key_heads * dim}, in_pack_heads, "dkv");
  expect_shape(op.d_qkv, tokens, op.qkv.data.dim(1), in_pack_heads, "d_qkv");
  check(is_scaled(op.d_qkv), in_pack_heads, "The result is not an f16 operand.");
  auto& device = recorder.device();
  using gpu::read, gpu::write;
  const double bytes = static_cast<double>(2 * op.qkv.data.bytes() + op.dq.bytes() + op.dkv.bytes());
  for (const auto [begin, end] : gpu::binding_slices(device, tokens, {std::uint64_t{op.heads} * dim * sizeof(float)})) {
    recorder.dispatch(kernel_of(device, heads, "backward", op.dkv.dim(0)),
                      {read(op.qkv.data), read(op.qkv.scale), read(op.position), read(op.table),
                       read(or_table(op.q_norm, op.table)), read(or_table(op.k_norm, op.table)), gpu::read_write(op.d_qkv.data),
                       gpu::read_write(op.d_qkv.scale), read(op.dq.rows(begin, end)), read(op.dkv)},
                      PackHeadsParams{tokens, op.eps, begin, end}, gpu::linear_grid(device, end - begin), {.bytes = bytes * (end - begin) / tokens});
  }
}

}  // namespace nibble
