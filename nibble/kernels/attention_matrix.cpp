#include "nibble/kernels/attention_matrix.h"

#include "nibble/base/error.h"
#include "nibble/kernels/product_matrix.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace nibble {
namespace detail {
namespace {

// Where the parts of the room lie: operands in vectors of 8 values, numbers in values.
struct Layout {
  std::uint32_t q, d_o, k, v;
  std::uint32_t q_scale, d_o_scale, k_scale, v_scale;
  std::uint64_t operand_values, number_count;

  explicit Layout(const AttentionShape& shape) {
    const std::uint64_t queries = std::uint64_t{shape.heads} * shape.tokens;
    const std::uint64_t keys = std::uint64_t{shape.key_heads} * shape.tokens;
    std::uint64_t at = 0;
    for (auto* place : {&q, &d_o}) *place = take(at, queries * shape.head_dim, 8);
    for (auto* place : {&k, &v}) *place = take(at, keys * shape.head_dim, 8);
    operand_values = at;
    at = 0;
    for (auto* place : {&q_scale, &d_o_scale}) *place = take(at, queries, 1);
    for (auto* place : {&k_scale, &v_scale}) *place = take(at, keys, 1);
    number_count = at;
  }

 private:
  static std::uint32_t take(std::uint64_t& at, std::uint64_t values, std::uint32_t unit) {
    const auto begin = static_cast<std::uint32_t>(at / unit);
    at += values;
    return begin;
  }
};

struct PackParams {
  std::uint32_t tokens, head_step, token_step, rows, scales;
};

// Rows of an operand: where they begin, from token to token and from head to head, in vectors of 8 values; and scales.
struct RowsParams {
  std::uint32_t at, row, head, scales, scale_head;
};

struct Params {
  std::uint32_t tokens, heads, group, parts;
  float scale;
  RowsParams q, k, v, d_o;
};

struct SumParams {
  std::uint32_t count;  // vectors of 4 of the sum
};

std::uint32_t blocks_of(std::uint32_t rows, std::uint32_t block) { return (rows + block - 1) / block; }

// Found on an H100, where rows of 128 are no better in short streams, which they leave parts of the GPU without work, and
// for heads of 64.
AttentionTile tile_of(const gpu::AdapterInfo& info, AttentionPass pass, const AttentionShape& shape) {
  AttentionTile tile{.matrix = default_matrix_tile(info).value().matrix, .subgroup = info.subgroup_max_size};
  tile.columns = 32, tile.results_across = 4;
  if (info.type == gpu::AdapterType::software) {
    tile.subgroups = 4, tile.rows = 16, tile.scores_across = 4;
    tile.unroll = tile.own_in_registers = false;
    return tile;
  }
  const bool many = shape.head_dim == 128 && std::uint64_t{shape.tokens} * shape.heads >= 65536;
  tile.rows = pass == AttentionPass::forward && many && info.limits.workgroup_invocations >= 512 ? 128 : 64;
  tile.subgroups = tile.rows / 8, tile.scores_across = 2;
  return tile;
}

gpu::Kernel matrix_kernel(gpu::Device& device, const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim) {
  constexpr std::array labels{"attention_matrix:forward", "attention_matrix:query_gradients",
                              "attention_matrix:key_gradients"};
  const char* label = labels.at(static_cast<std::size_t>(pass));
  return device.kernel(fmt::format("{} {} {}", label, head_dim, tile.rows), label, "main",
                       [&] { return attention_matrix_text(tile, pass, head_dim); });
}

// One pass's dispatches in the room.
class Matrices {
 public:
  Matrices(gpu::Recorder& recorder, const AttentionRoom& room, const AttentionShape& shape)
      : rec_(recorder), shape_(shape), layout_(shape), operands_(room.operands), numbers_(room.numbers) {}

  void pack(const Tensor& x, std::uint32_t heads, std::uint32_t rows, std::uint32_t scales) {
    rec_.dispatch(pack_kernel("rows"), {gpu::read(x), gpu::read_write(operands_), gpu::read_write(numbers_)},
                  pack_params(rows, scales, shape_.tokens * shape_.head_dim / 4, shape_.head_dim / 4), pack_grid(heads),
                  pack_work(heads, 1));
  }

  void pack_gradient(const AttentionBackward& op) {
    const std::uint32_t row = shape_.head_dim / 4;
    rec_.dispatch(pack_kernel("gradients"),
                  {gpu::read(op.d_o), gpu::read_write(operands_), gpu::read_write(numbers_), gpu::read(op.o),
                   gpu::write(op.delta)},
                  pack_params(layout_.d_o, layout_.d_o_scale, row, shape_.heads * row), pack_grid(shape_.heads),
                  pack_work(shape_.heads, 2));
  }

  const Layout& layout() const { return layout_; }
  gpu::Binding operands() const { return gpu::read(operands_); }
  gpu::Binding numbers() const { return gpu::read(numbers_); }

  Params params(std::uint32_t parts = 1) const {
    const Layout& l = layout_;
    const std::uint32_t row = shape_.head_dim / 8, head = shape_.tokens * row, tokens = shape_.tokens;
    return {.tokens = tokens, .heads = shape_.heads, .group = shape_.heads / shape_.key_heads, .parts = parts,
            .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.head_dim))),
            .q = {l.q, row, head, l.q_scale, tokens}, .k = {l.k, row, head, l.k_scale, tokens},
            .v = {l.v, row, head, l.v_scale, tokens}, .d_o = {l.d_o, row, head, l.d_o_scale, tokens}};
  }

  gpu::Work work(double products, double tensors) const {
    const double row = static_cast<double>(shape_.heads) * shape_.head_dim;
    return {.bytes = 2 * tensors * row * shape_.tokens, .flops = 2 * products * shape_.pairs * row};
  }

 private:
  gpu::Kernel pack_kernel(std::string_view entry) {
    gpu::Prelude prelude;
    prelude.enable("f16").constant("HEAD_DIM", shape_.head_dim);
    return kernel(rec_.device(), "attention_pack", prelude, {"row_scale"}, entry);
  }
  PackParams pack_params(std::uint32_t rows, std::uint32_t scales, std::uint32_t head_step, std::uint32_t token_step) const {
    return {.tokens = shape_.tokens, .head_step = head_step, .token_step = token_step, .rows = rows, .scales = scales};
  }
  gpu::Grid pack_grid(std::uint32_t heads) const { return {blocks_of(shape_.tokens, 16), heads}; }
  gpu::Work pack_work(std::uint32_t heads, double read) const {
    return {.bytes = (4 * read + 2) * heads * shape_.tokens * shape_.head_dim};
  }

  gpu::Recorder& rec_;
  const AttentionShape& shape_;
  Layout layout_;
  Tensor operands_, numbers_;
};

// Parts that a group's heads are cut into: short streams have too few blocks of keys for all of a GPU.
std::uint32_t key_parts(const AttentionShape& shape, std::uint32_t rows) {
  constexpr std::uint32_t enough = 1024;
  const std::uint32_t group = shape.heads / shape.key_heads;
  std::uint32_t parts = 1;
  for (std::uint32_t p = 2; p <= group; ++p) {
    const bool few = blocks_of(shape.tokens, rows) * shape.key_heads * parts < enough;
    if (group % p == 0 && few) parts = p;
  }
  return parts;
}

// A bound for any number of tokens up to the shape's.
std::uint64_t most_part_values(const AttentionShape& shape, std::uint32_t rows) {
  const std::uint32_t group = shape.heads / shape.key_heads;
  std::uint64_t most = 0;
  for (std::uint32_t tokens = rows; tokens < shape.tokens + rows; tokens += rows) {
    AttentionShape part = shape;
    part.tokens = std::min(tokens, shape.tokens);
    const std::uint32_t parts = std::min(group, key_parts(part, rows));
    if (parts > 1) most = std::max(most, std::uint64_t{2} * parts * shape.key_heads * part.tokens * shape.head_dim);
  }
  return most;
}

void sum_parts(gpu::Recorder& recorder, const Tensor& from, const Tensor& sum, std::uint32_t parts) {
  constexpr std::uint32_t workgroup = 128;
  gpu::Prelude prelude;
  prelude.constant("PARTS", parts).constant("WORKGROUP", workgroup);
  const auto count = static_cast<std::uint32_t>(sum.size() / 4);
  recorder.dispatch(kernel(recorder.device(), "attention_parts", prelude, {"grid"}), {gpu::read(from), gpu::write(sum)}, SumParams{count},
                    gpu::linear_grid(recorder.device(), blocks_of(count, workgroup)),
                    {.bytes = static_cast<double>(from.bytes() + sum.bytes())});
}

void key_gradients(gpu::Recorder& recorder, const AttentionBackward& op, const AttentionShape& shape, const Matrices& m) {
  const AttentionTile tile = tile_of(recorder.device().info(), AttentionPass::key_gradients, shape);
  const std::uint32_t parts = key_parts(shape, tile.rows);
  const std::uint64_t values = op.dk.size();
  const auto count = static_cast<std::uint32_t>(parts * values);
  const Tensor dk = parts == 1 ? op.dk : op.room.parts.part(0, {count});
  const Tensor dv = parts == 1 ? op.dv : op.room.parts.part(count, {count});
  recorder.dispatch(matrix_kernel(recorder.device(), tile, AttentionPass::key_gradients, shape.head_dim),
                    {m.operands(), m.numbers(), m.operands(), m.numbers(), m.operands(), m.numbers(), gpu::read(op.lse),
                     gpu::read(op.delta), gpu::read(op.query_end), gpu::read_write(dk), gpu::read_write(dv)},
                    m.params(parts), {blocks_of(shape.tokens, tile.rows), shape.key_heads * parts}, m.work(4, 4));
  if (parts == 1) return;
  sum_parts(recorder, dk, op.dk, parts);
  sum_parts(recorder, dv, op.dv, parts);
}

bool fits(const gpu::Device& device, const AttentionShape& shape) {
  const auto& info = device.info();
  if ((shape.head_dim != 64 && shape.head_dim != 128) || !default_matrix_tile(info)) return false;
  const auto matrix = default_matrix_tile(info)->matrix;
  const bool software = info.type == gpu::AdapterType::software;
  // The blocks above are made for subgroups of 32, eight of them in a workgroup and 48 KB.
  const bool wide = software || info.subgroup_max_size == 32;
  const bool room = info.limits.workgroup_storage >= (software ? 32768 : 49152) &&
                    info.limits.workgroup_invocations >= (software ? 32 : 256);
  if (std::max({matrix.m, matrix.n, matrix.k}) > 16 || !wide || !room) return false;
  const Layout layout(shape);
  const std::uint64_t tokens = std::uint64_t{shape.tokens} * shape.heads * shape.head_dim * 4;
  return std::max({tokens, 2 * layout.operand_values, 4 * layout.number_count}) <= info.limits.max_binding && info.limits.storage_bindings >= 12;
}

AttentionShape shape_of(const AttentionRoomSize& size) {
  return {.heads = size.heads, .key_heads = size.key_heads, .tokens = size.tokens, .head_dim = size.head_dim, .pairs = 0};
}

}  // namespace

bool attention_matrix_serves(const gpu::Device& device, const AttentionRoom& room, const AttentionShape& shape,
                             std::uint32_t capacity, std::optional<AttentionVariant> asked) {
  if (asked.value_or(AttentionVariant::matrix) != AttentionVariant::matrix) return false;
  const Layout layout(shape);
  const bool serves = room.operands && capacity == shape.tokens && fits(device, shape) &&
                      room.operands.size() >= layout.operand_values && room.numbers.size() >= layout.number_count;
  check(serves || !asked, "attention", "The matrix variant was asked for without room for it, or in a shape that it has not.");
  return serves;
}

void record_matrix(gpu::Recorder& recorder, const Attention& op, const AttentionShape& shape) {
  Matrices m(recorder, op.room, shape);
  const Layout& l = m.layout();
  m.pack(op.q, shape.heads, l.q, l.q_scale);
  m.pack(op.k, shape.key_heads, l.k, l.k_scale);
  m.pack(op.v, shape.key_heads, l.v, l.v_scale);
  const AttentionTile tile = tile_of(recorder.device().info(), AttentionPass::forward, shape);
  recorder.dispatch(matrix_kernel(recorder.device(), tile, AttentionPass::forward, shape.head_dim),
                    {m.operands(), m.numbers(), m.operands(), m.numbers(), gpu::read(op.key_begin), gpu::read(op.key_end),
                     gpu::write(op.o), gpu::write(op.lse)},
                    m.params(), {blocks_of(shape.tokens, tile.rows), shape.heads}, m.work(2, 3));
}

void record_matrix(gpu::Recorder& recorder, const AttentionBackward& op, const AttentionShape& shape) {
  Matrices m(recorder, op.room, shape);
  const Layout& l = m.layout();
  m.pack(op.q, shape.heads, l.q, l.q_scale);
  m.pack(op.k, shape.key_heads, l.k, l.k_scale);
  m.pack(op.v, shape.key_heads, l.v, l.v_scale);
  m.pack_gradient(op);
  const AttentionTile tile = tile_of(recorder.device().info(), AttentionPass::query_gradients, shape);
  recorder.dispatch(matrix_kernel(recorder.device(), tile, AttentionPass::query_gradients, shape.head_dim),
                    {m.operands(), m.numbers(), m.operands(), m.numbers(), m.operands(), m.numbers(), gpu::read(op.lse),
                     gpu::read(op.delta), gpu::read(op.key_begin), gpu::read(op.key_end), gpu::write(op.dq)},
                    m.params(), {blocks_of(shape.tokens, tile.rows), shape.heads}, m.work(3, 4));
  key_gradients(recorder, op, shape, m);
}

}  // namespace detail

std::uint64_t attention_room_bytes(const gpu::Device& device, const AttentionRoomSize& size) {
  const auto shape = detail::shape_of(size);
  if (!detail::fits(device, shape)) return 0;
  const detail::Layout layout(shape);
  const auto tile = detail::tile_of(device.info(), detail::AttentionPass::key_gradients, shape);
  return 2 * layout.operand_values + 4 * (layout.number_count + detail::most_part_values(shape, tile.rows));
}

AttentionRoom make_attention_room(gpu::Device& device, const AttentionRoomSize& size) {
  if (attention_room_bytes(device, size) == 0) return {};
  const auto shape = detail::shape_of(size);
  const detail::Layout layout(shape);
  const auto tile = detail::tile_of(device.info(), detail::AttentionPass::key_gradients, shape);
  const auto make = [&](DType dtype, std::uint64_t values) {
    return device.tensor(dtype, {static_cast<std::uint32_t>(std::max<std::uint64_t>(values, 4))}, "attention room");
  };
  return {.operands = make(DType::f16, layout.operand_values),
          .numbers = make(DType::f32, layout.number_count),
          .parts = make(DType::f32, detail::most_part_values(shape, tile.rows))};
}

}  // namespace nibble
