#include "nibble/kernels/packed_attention.h"

#include "nibble/base/error.h"
#include "nibble/kernels/product_matrix.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace nibble {
namespace {

using detail::AttentionPass;
using detail::AttentionTile;

constexpr std::string_view in_packed_attention = "packed_attention";
constexpr std::uint32_t enough_key_rows = 65536;  // in all workgroups of key gradients
// Of a workgroup in key gradients.
std::uint32_t key_rows(std::uint32_t head_dim) { return head_dim == 128 ? 128 : 64; }

struct PackedAttentionParams {
  std::uint32_t tokens, heads, key_heads, parts;
  float scale;
  std::uint32_t first_row = 0;  // of dq as it is bound
  std::uint32_t capacity = 0;   // rows of a head in caches
};

std::uint32_t blocks_of(std::uint32_t rows, std::uint32_t block) { return (rows + block - 1) / block; }

// Found on an H100 for heads of 128. Two workgroups of query gradients, and of both gradients with heads of 64, share a
// processor's workgroup memory; the others need all of it. In short streams rows of 128 would leave parts of the GPU without
// work in the forward pass.
AttentionTile tile_of(const gpu::AdapterInfo& info, AttentionPass pass, const PackedHeads& of) {
  const bool forward = pass == AttentionPass::forward || pass == AttentionPass::forward_from_caches;
  if (of.tiles && forward) return of.tiles->forward;
  if (of.tiles) return pass == AttentionPass::query_gradients ? of.tiles->query_gradients : of.tiles->key_gradients;
  AttentionTile tile{.matrix = default_matrix_tile(info).value().matrix, .subgroup = info.subgroup_max_size};
  if (info.type == gpu::AdapterType::software) {
    tile.subgroups = 4, tile.rows = tile.columns = 16, tile.scores_across = 2;
    tile.results_across = pass == AttentionPass::key_gradients ? 2 : 4;
    tile.unroll = tile.own_in_registers = false;
    return tile;
  }
  if (forward) {
    const std::uint64_t tokens = of.plan_tokens ? of.plan_tokens : of.tokens();
    const bool many = of.head_dim() == 128 && tokens * of.heads >= 65536 && info.limits.workgroup_invocations >= 512;
    tile.rows = many ? 128 : 64, tile.columns = 32;
    tile.subgroups = tile.rows / 8, tile.scores_across = 2, tile.results_across = 4;
    return tile;
  }
  tile.rows = pass == AttentionPass::key_gradients ? key_rows(of.head_dim()) : 64, tile.columns = 16;
  tile.subgroups = tile.rows / 16, tile.scores_across = 1, tile.results_across = 2;
  return tile;
}

gpu::Kernel kernel_of(gpu::Device& device, const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim) {
  constexpr std::array labels{"packed_attention:forward", "packed_attention:forward_from_caches", "packed_attention:query_gradients",
                              "packed_attention:key_gradients"};
  const char* label = labels.at(static_cast<std::size_t>(pass));
  return device.kernel(fmt::format("{} {} {}x{} {}", label, head_dim, tile.rows, tile.columns, tile.subgroups), label, "main",
                       [&] { return detail::packed_attention_text(tile, pass, head_dim); });
}

PackedAttentionShape shape_of(const PackedHeads& of) { return {of.tokens(), of.heads, of.key_heads, of.head_dim()}; }

PackedAttentionParams params_of(const PackedHeads& of, std::uint32_t parts = 1) {
  return {.tokens = of.tokens(), .heads = of.heads, .key_heads = of.key_heads, .parts = parts,
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(of.head_dim())))};
}

std::uint64_t dq_row_bytes(std::uint32_t heads, std::uint32_t head_dim) { return std::uint64_t{heads} * head_dim * sizeof(float); }

// Of `products` products of queries and keys, `tensors` f16 ones of the queries' size moved once.
gpu::Work work_of(const PackedHeads& of, double products, double tensors) {
  const double row = static_cast<double>(of.heads) * of.head_dim(), tokens = of.tokens();
  const double pairs = of.pairs ? static_cast<double>(of.pairs) : 0.5 * tokens * (tokens + 1);
  return {.bytes = 2 * tensors * row * tokens, .flops = 2 * products * pairs * row};
}

void check_f16(const Operand& operand, std::uint32_t rows, std::uint32_t columns, std::string_view name) {
  check(is_scaled(operand), in_packed_attention, "{} is not an f16 operand.", name);
  expect_shape(operand, rows, columns, in_packed_attention, name);
}

void check_u32(const Tensor& tensor, std::uint32_t tokens, std::string_view name) {
  check(tensor && tensor.dtype() == DType::u32 && tensor.size() >= tokens, in_packed_attention, "{} must have an element a token.", name);
}

void check_heads(const gpu::Device& device, const PackedHeads& of) {
  check(of.key_heads > 0 && of.heads % of.key_heads == 0 && is_scaled(of.qk) && of.qk.data.rank() == 2, in_packed_attention,
        "Rows of {} query heads and {} key heads were given.", of.heads, of.key_heads);
  const std::uint32_t tokens = of.tokens(), dim = of.head_dim();
  check_f16(of.qk, tokens, (of.heads + of.key_heads) * dim, "qk");
  check_f16(of.qkv, tokens, (of.heads + 2 * of.key_heads) * dim, "qkv");
  expect_shape(of.v_most, DType::f32, {tokens}, in_packed_attention, "v_most");
  check_u32(of.key_begin, tokens, "key_begin");
  check_u32(of.key_end, tokens, "key_end");
  check(packed_attention_fits(device, shape_of(of)), in_packed_attention,
        "The adapter has no matrices for {} tokens with heads of {}, or too small bindings.", tokens, dim);
}

void check_caches(const PackedAttention& op) {
  for (const Tensor* cache : {&op.k_cache, &op.v_cache}) {
    expect_shape(*cache, DType::f16, {op.of.key_heads, op.k_cache.dim(1), op.of.head_dim()}, in_packed_attention, "a cache");
  }
}

// In f32 dq is the largest tensor here, and of long streams larger than a binding.
void query_gradients(gpu::Recorder& recorder, const PackedAttentionBackward& op) {
  using gpu::read, gpu::write;
  auto& device = recorder.device();
  const std::uint32_t tokens = op.of.tokens(), dim = op.of.head_dim();
  const AttentionTile tile = tile_of(device.info(), AttentionPass::query_gradients, op.of);
  const gpu::Work work = work_of(op.of, 3, 6);
  PackedAttentionParams params = params_of(op.of);
  for (const auto [begin, end] : gpu::binding_slices(device, tokens, {dq_row_bytes(op.of.heads, dim)}, tile.rows)) {
    params.first_row = begin;
    const double share = static_cast<double>(end - begin) / tokens;
    recorder.dispatch(kernel_of(device, tile, AttentionPass::query_gradients, dim),
                      {read(op.of.qk.data), read(op.of.qk.scale), read(op.of.qkv.data), read(op.of.qkv.scale),
                       read(op.of.v_most), read(op.d_o.data), read(op.d_o.scale), read(op.o.data), read(op.o.scale),
                       read(op.lse), read(op.of.key_begin), read(op.of.key_end), gpu::read_write(op.numbers), write(op.dq.rows(begin, end))},
                      params, {op.of.heads, blocks_of(end - begin, tile.rows)}, {.bytes = work.bytes * share, .flops = work.flops * share});
  }
}

void key_gradients(gpu::Recorder& recorder, const PackedAttentionBackward& op, std::uint32_t parts) {
  using gpu::read, gpu::write;
  const AttentionTile tile = tile_of(recorder.device().info(), AttentionPass::key_gradients, op.of);
  recorder.dispatch(kernel_of(recorder.device(), tile, AttentionPass::key_gradients, op.of.head_dim()),
                    {read(op.of.qk.data), read(op.of.qk.scale), read(op.of.qkv.data), read(op.of.qkv.scale),
                     read(op.of.v_most), read(op.d_o.data), read(op.d_o.scale), read(op.numbers), read(op.lse),
                     read(op.query_end), write(op.dkv)},
                    params_of(op.of, parts), {op.of.key_heads * parts, blocks_of(op.of.tokens(), tile.rows)},
                    work_of(op.of, 4, 4));
}

}  // namespace

bool packed_attention_fits(const gpu::Device& device, const PackedAttentionShape& shape) {
  const auto& info = device.info();
  if ((shape.head_dim != 64 && shape.head_dim != 128) || !default_matrix_tile(info)) return false;
  const auto matrix = default_matrix_tile(info)->matrix;
  // The blocks above are made for subgroups of 32, eight of them in a workgroup and 48 KB.
  const bool software = info.type == gpu::AdapterType::software;
  const bool wide = software || info.subgroup_max_size == 32;
  const bool room = info.limits.workgroup_storage >= (software ? 32768 : 49152) &&
                    info.limits.workgroup_invocations >= (software ? 32 : 256) && info.limits.storage_bindings >= 14;
  if (std::max({matrix.m, matrix.n, matrix.k}) > 16 || !wide || !room) return false;
  const std::uint64_t qkv_row = (std::uint64_t{shape.heads} + 2 * shape.key_heads) * shape.head_dim * 2;
  const std::uint64_t dkv_row = std::uint64_t{shape.key_heads} * shape.head_dim * 8;
  return std::max(shape.tokens * qkv_row, packed_attention_most_rows(shape) * dkv_row) <= info.limits.max_binding;
}

std::uint32_t packed_attention_parts(const PackedAttentionShape& shape) {
  const std::uint32_t group = shape.heads / shape.key_heads;
  std::uint32_t parts = 1;
  for (std::uint32_t p = 2; p <= group; ++p) {
    if (group % p == 0 && std::uint64_t{shape.tokens} * shape.key_heads * parts < enough_key_rows) parts = p;
  }
  return parts;
}

std::uint32_t packed_attention_most_rows(const PackedAttentionShape& shape) {
  std::uint32_t most = shape.tokens * packed_attention_parts(shape);
  for (std::uint32_t parts = 1; parts < shape.heads / shape.key_heads; ++parts) {
    PackedAttentionShape last = shape;
    last.tokens = std::min(shape.tokens, (enough_key_rows - 1) / (shape.key_heads * parts));
    most = std::max(most, last.tokens * packed_attention_parts(last));
  }
  return most;
}

void record(gpu::Recorder& recorder, const PackedAttention& op) {
  auto& device = recorder.device();
  check_heads(device, op.of);
  const std::uint32_t tokens = op.of.tokens(), dim = op.of.head_dim();
  check_f16(op.o, tokens, op.of.heads * dim, "o");
  expect_shape(op.lse, DType::f32, {op.of.heads, tokens}, in_packed_attention, "lse");
  using gpu::read, gpu::write;
  const auto pass = op.k_cache ? AttentionPass::forward_from_caches : AttentionPass::forward;
  const AttentionTile tile = tile_of(device.info(), pass, op.of);
  PackedAttentionParams params = params_of(op.of);
  std::vector<gpu::Binding> bindings{read(op.of.qk.data), read(op.of.qk.scale)};
  if (op.k_cache) {
    check_caches(op);
    params.capacity = op.k_cache.dim(1);
    bindings.insert(bindings.end(), {read(op.k_cache), read(op.v_cache)});
  } else {
    bindings.insert(bindings.end(), {read(op.of.qkv.data), read(op.of.qkv.scale), read(op.of.v_most)});
  }
  bindings.insert(bindings.end(), {read(op.of.key_begin), read(op.of.key_end), gpu::read_write(op.o.data), write(op.o.scale), write(op.lse)});
  recorder.dispatch_bytes(kernel_of(device, tile, pass, dim), bindings, std::as_bytes(std::span(&params, 1)), {op.of.heads, blocks_of(tokens, tile.rows)},
                          work_of(op.of, 2, 3));
}

void record(gpu::Recorder& recorder, const PackedAttentionBackward& op) {
  check_heads(recorder.device(), op.of);
  const std::uint32_t tokens = op.of.tokens(), dim = op.of.head_dim(), parts = packed_attention_parts(shape_of(op.of));
  check_u32(op.query_end, tokens, "query_end");
  check_f16(op.o, tokens, op.of.heads * dim, "o");
  check_f16(op.d_o, tokens, op.of.heads * dim, "d_o");
  expect_shape(op.lse, DType::f32, {op.of.heads, tokens}, in_packed_attention, "lse");
  expect_shape(op.numbers, DType::f32, {2, op.of.heads, tokens}, in_packed_attention, "numbers");
  expect_shape(op.dq, DType::f32, {tokens, op.of.heads * dim}, in_packed_attention, "dq");
  expect_shape(op.dkv, DType::f32, {parts, tokens, 2 * op.of.key_heads * dim}, in_packed_attention, "dkv");
  query_gradients(recorder, op);
  key_gradients(recorder, op, parts);
}

}  // namespace nibble
