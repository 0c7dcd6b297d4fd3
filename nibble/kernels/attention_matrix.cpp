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
  std::uint32_t padded;  // rows of a head
  std::uint32_t q, q_turned, d_o, d_o_turned, k, k_turned, v, v_turned;
  std::uint32_t q_scale, d_o_scale, lse, delta, k_scale, v_scale;
  std::uint64_t operand_values, number_count;

  explicit Layout(const AttentionShape& shape)
      : padded((shape.tokens + attention_row_multiple - 1) / attention_row_multiple * attention_row_multiple) {
    const std::uint64_t query_values = std::uint64_t{shape.heads} * padded * shape.head_dim;
    const std::uint64_t key_values = std::uint64_t{shape.key_heads} * padded * shape.head_dim;
    std::uint64_t at = 0;
    for (auto* place : {&q, &q_turned, &d_o, &d_o_turned}) *place = take(at, query_values, 8);
    for (auto* place : {&k, &k_turned, &v}) *place = take(at, key_values, 8);
    v_turned = k_turned;  // one in the forward pass, one in the backward
    operand_values = at;
    at = 0;
    for (auto* place : {&q_scale, &d_o_scale, &lse, &delta}) *place = take(at, std::uint64_t{shape.heads} * padded, 1);
    for (auto* place : {&k_scale, &v_scale}) *place = take(at, std::uint64_t{shape.key_heads} * padded, 1);
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
  std::uint32_t tokens, padded, head_step, token_step, plain, turned, scales, lse, delta;
};

struct Params {
  std::uint32_t tokens, padded, heads, group, parts;
  std::uint32_t q, k, v, d_o, q_turned, k_turned, v_turned, d_o_turned;
  std::uint32_t q_scale, k_scale, v_scale, d_o_scale, lse, delta;
  float scale;
};

struct SumParams {
  std::uint32_t count;  // vectors of 4 of the sum
};

std::uint32_t blocks_of(std::uint32_t rows, std::uint32_t block) { return (rows + block - 1) / block; }

// Found on an H100: small blocks, of which several fit on a multiprocessor at a time, beat larger ones.
AttentionTile tile_of(const gpu::AdapterInfo& info, AttentionPass pass) {
  AttentionTile tile{.matrix = default_matrix_tile(info).value().matrix, .subgroup = info.subgroup_max_size, .subgroups = 4};
  if (info.type == gpu::AdapterType::software) {
    tile.rows = 16, tile.columns = 64, tile.scores_across = 4, tile.results_across = 4, tile.unroll = false;
  } else if (pass == AttentionPass::forward) {
    tile.rows = 64, tile.columns = 32, tile.scores_across = 2, tile.results_across = 2;
  } else {
    tile.rows = 32, tile.columns = 32, tile.scores_across = 2, tile.results_across = 4;
  }
  return tile;
}

gpu::Kernel matrix_kernel(gpu::Device& device, const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim) {
  constexpr std::array labels{"attention_matrix:forward", "attention_matrix:query_gradients",
                              "attention_matrix:key_gradients"};
  const char* label = labels.at(static_cast<std::size_t>(pass));
  return device.kernel(fmt::format("{} {}", label, head_dim), label, "main",
                       [&] { return attention_matrix_text(tile, pass, head_dim); });
}

// One pass's dispatches in the room.
class Matrices {
 public:
  Matrices(gpu::Recorder& recorder, const AttentionRoom& room, const AttentionShape& shape)
      : rec_(recorder), shape_(shape), layout_(shape), operands_(room.operands), numbers_(room.numbers) {}

  struct Places {
    std::uint32_t plain, turned, scales;
  };

  void pack(const Tensor& x, std::uint32_t heads, Places places, bool plain, bool turned) {
    rec_.dispatch(pack_kernel("rows", plain, turned), {gpu::read(x), gpu::read_write(operands_), gpu::read_write(numbers_)},
                  pack_params(places, shape_.tokens * shape_.head_dim / 4, shape_.head_dim / 4), pack_grid(heads),
                  pack_work(heads, 1, plain + turned));
  }

  void pack_gradient(const AttentionBackward& op) {
    const std::uint32_t row = shape_.head_dim / 4;
    rec_.dispatch(pack_kernel("gradients", true, true),
                  {gpu::read(op.d_o), gpu::read_write(operands_), gpu::read_write(numbers_), gpu::read(op.o),
                   gpu::read(op.lse), gpu::write(op.delta)},
                  pack_params({layout_.d_o, layout_.d_o_turned, layout_.d_o_scale}, row, shape_.heads * row),
                  pack_grid(shape_.heads), pack_work(shape_.heads, 2, 2));
  }

  const Layout& layout() const { return layout_; }
  gpu::Binding operands() const { return gpu::read(operands_); }
  gpu::Binding numbers() const { return gpu::read(numbers_); }

  Params params(std::uint32_t parts = 1) const {
    const Layout& l = layout_;
    return {.tokens = shape_.tokens, .padded = l.padded, .heads = shape_.heads, .group = shape_.heads / shape_.key_heads,
            .parts = parts, .q = l.q, .k = l.k, .v = l.v, .d_o = l.d_o, .q_turned = l.q_turned, .k_turned = l.k_turned,
            .v_turned = l.v_turned, .d_o_turned = l.d_o_turned, .q_scale = l.q_scale, .k_scale = l.k_scale,
            .v_scale = l.v_scale, .d_o_scale = l.d_o_scale, .lse = l.lse, .delta = l.delta,
            .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.head_dim)))};
  }

  gpu::Work work(double products, double tensors) const {
    const double row = static_cast<double>(shape_.heads) * shape_.head_dim;
    return {.bytes = 2 * tensors * row * shape_.tokens, .flops = 2 * products * shape_.pairs * row};
  }

 private:
  gpu::Kernel pack_kernel(std::string_view entry, bool plain, bool turned) {
    gpu::Prelude prelude;
    prelude.enable("f16").constant("HEAD_DIM", shape_.head_dim).constant("PLAIN", plain).constant("TURNED", turned);
    return kernel(rec_.device(), "attention_pack", prelude, {"row_scale"}, entry);
  }
  PackParams pack_params(Places places, std::uint32_t head_step, std::uint32_t token_step) const {
    return {.tokens = shape_.tokens, .padded = layout_.padded, .head_step = head_step, .token_step = token_step,
            .plain = places.plain, .turned = places.turned, .scales = places.scales, .lse = layout_.lse,
            .delta = layout_.delta};
  }
  gpu::Grid pack_grid(std::uint32_t heads) const { return {layout_.padded / 16, heads}; }
  gpu::Work pack_work(std::uint32_t heads, double read, double written) const {
    return {.bytes = (4 * read + 2 * written) * heads * shape_.tokens * shape_.head_dim};
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
  const AttentionTile tile = tile_of(recorder.device().info(), AttentionPass::key_gradients);
  const std::uint32_t parts = key_parts(shape, tile.rows);
  const std::uint64_t values = op.dk.size();
  const auto count = static_cast<std::uint32_t>(parts * values);
  const Tensor dk = parts == 1 ? op.dk : op.room.parts.part(0, {count});
  const Tensor dv = parts == 1 ? op.dv : op.room.parts.part(count, {count});
  recorder.dispatch(matrix_kernel(recorder.device(), tile, AttentionPass::key_gradients, shape.head_dim),
                    {m.operands(), m.numbers(), gpu::read(op.query_end), gpu::read_write(dk), gpu::read_write(dv)},
                    m.params(parts), {blocks_of(shape.tokens, tile.rows), shape.key_heads * parts}, m.work(4, 4));
  if (parts == 1) return;
  sum_parts(recorder, dk, op.dk, parts);
  sum_parts(recorder, dv, op.dv, parts);
}

bool fits(const gpu::Device& device, const AttentionShape& shape) {
  const auto& info = device.info();
  if ((shape.head_dim != 64 && shape.head_dim != 128) || !default_matrix_tile(info)) return false;
  const auto matrix = default_matrix_tile(info)->matrix;
  // The blocks above are made for subgroups of 32, four of them in a workgroup and 24 KB.
  const bool wide = info.type == gpu::AdapterType::software || info.subgroup_max_size == 32;
  const bool room = info.limits.workgroup_storage >= 32768 && info.limits.workgroup_invocations >= 128;
  if (std::max({matrix.m, matrix.n, matrix.k}) > 16 || !wide || !room) return false;
  const Layout layout(shape);
  const std::uint64_t tokens = std::uint64_t{shape.tokens} * shape.heads * shape.head_dim * 4;
  return std::max({tokens, 2 * layout.operand_values, 4 * layout.number_count}) <= info.limits.max_binding;
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
  m.pack(op.q, shape.heads, {l.q, 0, l.q_scale}, true, false);
  m.pack(op.k, shape.key_heads, {l.k, 0, l.k_scale}, true, false);
  m.pack(op.v, shape.key_heads, {0, l.v_turned, l.v_scale}, false, true);
  const AttentionTile tile = tile_of(recorder.device().info(), AttentionPass::forward);
  recorder.dispatch(matrix_kernel(recorder.device(), tile, AttentionPass::forward, shape.head_dim),
                    {m.operands(), m.numbers(), gpu::read(op.key_begin), gpu::read(op.key_end), gpu::write(op.o),
                     gpu::write(op.lse)},
                    m.params(), {blocks_of(shape.tokens, tile.rows), shape.heads}, m.work(2, 3));
}

void record_matrix(gpu::Recorder& recorder, const AttentionBackward& op, const AttentionShape& shape) {
  Matrices m(recorder, op.room, shape);
  const Layout& l = m.layout();
  m.pack(op.q, shape.heads, {l.q, l.q_turned, l.q_scale}, true, true);
  m.pack(op.k, shape.key_heads, {l.k, l.k_turned, l.k_scale}, true, true);
  m.pack(op.v, shape.key_heads, {l.v, 0, l.v_scale}, true, false);
  m.pack_gradient(op);
  const AttentionTile tile = tile_of(recorder.device().info(), AttentionPass::query_gradients);
  recorder.dispatch(matrix_kernel(recorder.device(), tile, AttentionPass::query_gradients, shape.head_dim),
                    {m.operands(), m.numbers(), gpu::read(op.key_begin), gpu::read(op.key_end), gpu::write(op.dq)},
                    m.params(), {blocks_of(shape.tokens, tile.rows), shape.heads}, m.work(3, 4));
  key_gradients(recorder, op, shape, m);
}

}  // namespace detail

std::uint64_t attention_room_bytes(const gpu::Device& device, const AttentionRoomSize& size) {
  const auto shape = detail::shape_of(size);
  if (!detail::fits(device, shape)) return 0;
  const detail::Layout layout(shape);
  const auto tile = detail::tile_of(device.info(), detail::AttentionPass::key_gradients);
  return 2 * layout.operand_values + 4 * (layout.number_count + detail::most_part_values(shape, tile.rows));
}

AttentionRoom make_attention_room(gpu::Device& device, const AttentionRoomSize& size) {
  if (attention_room_bytes(device, size) == 0) return {};
  const auto shape = detail::shape_of(size);
  const detail::Layout layout(shape);
  const auto tile = detail::tile_of(device.info(), detail::AttentionPass::key_gradients);
  const auto make = [&](DType dtype, std::uint64_t values) {
    return device.tensor(dtype, {static_cast<std::uint32_t>(std::max<std::uint64_t>(values, 4))}, "attention room");
  };
  return {.operands = make(DType::f16, layout.operand_values),
          .numbers = make(DType::f32, layout.number_count),
          .parts = make(DType::f32, detail::most_part_values(shape, tile.rows))};
}

}  // namespace nibble
