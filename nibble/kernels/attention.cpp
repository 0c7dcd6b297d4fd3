#include "nibble/kernels/attention.h"

#include "nibble/base/error.h"
#include "nibble/kernels/attention_decode.h"
#include "nibble/kernels/key_cache.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace nibble {
namespace {

constexpr std::string_view in_attention = "attention";

struct Shape {
  std::uint32_t heads, key_heads, tokens, capacity, head_dim;
  double pairs;

  std::uint32_t group() const { return heads / key_heads; }
  std::uint64_t token_bytes() const { return std::uint64_t{heads} * head_dim * 4; }
  // Of `products` products of queries and keys, `tensors` of the queries' size moved once.
  gpu::Work work(double products, double tensors) const {
    return {.bytes = 4 * tensors * heads * tokens * head_dim, .flops = 2 * products * pairs * heads * head_dim};
  }
  // Keys and values read once for each query.
  gpu::Work decode_work() const { return {.bytes = 8 * pairs * key_heads * head_dim, .flops = 4 * pairs * heads * head_dim}; }
};

Shape shape_of(const Tensor& q, const Tensor& k, const Tensor& v, std::uint64_t pairs) {
  expect_keys(k, v, in_attention);
  check(q.rank() == 3 && q.dim(2) == k.dim(2), in_attention,
        "Queries of shape {}, keys of {} and values of {} do not match.", q.shape_text(), k.shape_text(),
        v.shape_text());
  check(k.dim(0) > 0 && q.dim(0) % k.dim(0) == 0, in_attention, "{} query heads cannot share {} key heads evenly.", q.dim(0),
        k.dim(0));
  check(q.dim(2) % 16 == 0 && q.dim(2) >= 16 && q.dim(2) <= 256, in_attention,
        "A head of {} values was given; multiples of 16 up to 256 are supported.", q.dim(2));
  const double all = 0.5 * q.dim(1) * (q.dim(1) + 1.0);
  return {q.dim(0), k.dim(0), q.dim(1), k.dim(1), q.dim(2), pairs ? static_cast<double>(pairs) : all};
}

void check_rows(const Shape& shape, const char* name, const Tensor& tensor, std::uint64_t elements) {
  check(static_cast<bool>(tensor) && tensor.size() >= elements, in_attention,
        "{} holds {} elements; {} tokens and {} heads need {}.", name, tensor.size(), shape.tokens, shape.heads,
        elements);
}

// What one dispatch covers: key heads with the query heads that share them, and tokens of o and d_o.
struct AttentionSlice {
  gpu::RowRange heads, key_heads, tokens;
  AttentionParams params;
};

// `dispatch(slice)` in an order in which tokens rise for each head.
template <typename Dispatch>
void for_slices(const gpu::Device& device, const Shape& shape, const Dispatch& dispatch) {
  const std::uint64_t row = std::uint64_t{shape.head_dim} * 4;
  const auto all_heads =
      gpu::binding_slices(device, shape.key_heads, {row * shape.tokens * shape.group(), row * shape.capacity});
  for (const auto key_heads : all_heads) {
    for (const auto tokens : gpu::binding_slices(device, shape.tokens, {shape.token_bytes()})) {
      const gpu::RowRange heads{key_heads.begin * shape.group(), key_heads.end * shape.group()};
      dispatch(AttentionSlice{.heads = heads,
                     .key_heads = key_heads,
                     .tokens = tokens,
                     .params = {.tokens = shape.tokens,
                                .capacity = shape.capacity,
                                .heads = shape.heads,
                                .group = shape.group(),
                                .first_head = heads.begin,
                                .first_token = tokens.begin,
                                .last_token = tokens.end,
                                .more = tokens.begin > 0 ? 1u : 0u,
                                .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)))}});
    }
  }
}

Tensor part(const Tensor& tensor, gpu::RowRange range) { return tensor.rows(range.begin, range.end); }

std::uint32_t groups_for(std::uint32_t rows, std::uint32_t rows_per_group) {
  return (rows + rows_per_group - 1) / rows_per_group;
}

// A variant's kernels and the rows that one of their workgroups covers.
struct Plan {
  std::string_view file, of_keys;  // the second: gradients of keys
  gpu::Prelude prelude;
  std::uint32_t rows;
  bool tiles = false;

  gpu::Kernel entry(gpu::Device& device, std::string_view name) const {
    const std::string_view of = name == "key_gradients" ? of_keys : file;
    if (tiles) return kernel(device, of, prelude, {"attention", "attention_tiles"}, name);
    return kernel(device, of, prelude, {"attention"}, name);
  }
};

Plan rows_plan(const gpu::Device& device, std::uint32_t head_dim, const Tensor& keys) {
  const std::uint32_t width = std::max(8u, device.info().subgroup_max_size);
  Plan plan{.file = "attention_rows", .of_keys = "attention_rows", .rows = width};
  declare_keys(plan.prelude, keys);
  plan.prelude.constant("HEAD_DIM", head_dim).constant("WIDTH", width);
  return plan;
}

Plan tiles_plan(std::uint32_t head_dim, std::uint32_t block, const Tensor& keys) {
  const std::uint32_t stage_vectors = 2 * block * 5;
  const std::uint32_t stage_rows = std::min(block, std::bit_floor(stage_vectors / (head_dim / 4)));
  Plan plan{.file = "attention_tiles", .of_keys = "attention_key_tiles", .rows = block, .tiles = true};
  declare_keys(plan.prelude, keys);
  plan.prelude.constant("HEAD_DIM", head_dim).constant("BLOCK", block).constant("STAGE_ROWS", stage_rows);
  return plan;
}

AttentionVariant usual_variant(const gpu::Device& device) {
  if (device.info().type == gpu::AdapterType::software) return AttentionVariant::rows;
  const auto& limits = device.info().limits;
  const bool large = limits.workgroup_storage >= 32768 && limits.workgroup_invocations >= 128;
  return large ? AttentionVariant::tiles : AttentionVariant::small_tiles;
}

Plan plan_of(const gpu::Device& device, std::uint32_t head_dim, AttentionVariant variant, const Tensor& keys) {
  switch (variant) {
    case AttentionVariant::rows: return rows_plan(device, head_dim, keys);
    case AttentionVariant::tiles: return tiles_plan(head_dim, 64, keys);
    case AttentionVariant::small_tiles: return tiles_plan(head_dim, 32, keys);
    case AttentionVariant::decode: break;
  }
  fail(in_attention, "A variant was asked for that has no backward.");
}

void record_delta(gpu::Recorder& recorder, const Shape& shape, const AttentionBackward& op) {
  constexpr std::uint32_t workgroup = 64;
  gpu::Prelude prelude;
  prelude.constant("HEAD_DIM", shape.head_dim).constant("WORKGROUP", workgroup);
  const auto entry = kernel(recorder.device(), "attention_delta", prelude, {"attention", "grid"});
  for (const auto tokens : gpu::binding_slices(recorder.device(), shape.tokens, {shape.token_bytes()})) {
    const AttentionParams params{
        .tokens = shape.tokens, .heads = shape.heads, .first_token = tokens.begin, .last_token = tokens.end};
    const std::uint64_t rows = std::uint64_t{tokens.end - tokens.begin} * shape.heads;
    recorder.dispatch(entry, {gpu::read(part(op.o, tokens)), gpu::read(part(op.d_o, tokens)), gpu::write(op.delta)},
                      params, gpu::linear_grid(recorder.device(), (rows + workgroup - 1) / workgroup),
                      {.bytes = 8.0 * static_cast<double>(rows) * shape.head_dim});
  }
}

void check_backward(const Shape& shape, const AttentionBackward& op) {
  check(op.k.dtype() == DType::f32, in_attention, "Gradients of keys in {} were asked for; they must be f32.", name_of(op.k.dtype()));
  const std::uint64_t rows = std::uint64_t{shape.tokens} * shape.heads;
  check(shape.tokens <= shape.capacity, in_attention, "{} tokens do not fit into keys of shape {}.", shape.tokens,
        op.k.shape_text());
  check_rows(shape, "o", op.o, rows * shape.head_dim);
  check_rows(shape, "d_o", op.d_o, rows * shape.head_dim);
  check_rows(shape, "lse", op.lse, rows);
  check_rows(shape, "delta", op.delta, rows);
  check_rows(shape, "key_begin", op.key_begin, shape.tokens);
  check_rows(shape, "key_end", op.key_end, shape.tokens);
  check_rows(shape, "query_end", op.query_end, shape.tokens);
  check(op.dq && op.dk && op.dv && op.dq.shape_text() == op.q.shape_text() && op.dk.shape_text() == op.k.shape_text() &&
            op.dv.shape_text() == op.v.shape_text(),
        in_attention, "dq, dk and dv must have the shapes of q, k and v.");
}

void record_decode(gpu::Recorder& recorder, const Shape& shape, const Attention& op) {
  DecodeCut cut{.parts = 1, .keys = shape.capacity};
  if (op.parts.o) cut = decode_cut(recorder.device(), shape.tokens, op.most_keys, op.least_part_keys);
  const bool split = cut.parts > 1;
  if (split) check_parts(op.parts, shape.heads, shape.head_dim);
  const std::uint32_t heads = decode_heads(shape.group());
  gpu::Prelude prelude;
  declare_keys(prelude, op.k);
  prelude.constant("HEAD_DIM", shape.head_dim).constant("HEADS", heads).constant("SPLIT", split);
  const auto entry = kernel(recorder.device(), "attention_decode", prelude, {"attention", "attention_result", "attention_decode"}, "forward");
  for_slices(recorder.device(), shape, [&](AttentionSlice slice) {
    slice.params.parts = cut.parts, slice.params.part_keys = cut.keys;
    recorder.dispatch(entry,
                      {gpu::read(part(op.q, slice.heads)), gpu::read(part(op.k, slice.key_heads)),
                       gpu::read(part(op.v, slice.key_heads)), gpu::read(op.key_begin), gpu::read(op.key_end),
                       gpu::write(split ? op.parts.o : part(op.o, slice.tokens)), gpu::write(split ? op.parts.numbers : op.lse)},
                      slice.params,
                      {slice.tokens.end - slice.tokens.begin, (slice.heads.end - slice.heads.begin) / heads, cut.parts},
                      shape.decode_work());
    if (!split) return;
    record(recorder, PartsSum{.parts = op.parts, .params = slice.params, .head_dim = shape.head_dim, .heads = slice.heads.end - slice.heads.begin,
                              .o = part(op.o, slice.tokens), .lse = op.lse});
  });
}

}  // namespace

void record(gpu::Recorder& recorder, const Attention& op) {
  gpu::Device& device = recorder.device();
  const Shape shape = shape_of(op.q, op.k, op.v, op.pairs);
  const std::uint64_t rows = std::uint64_t{shape.tokens} * shape.heads;
  check_rows(shape, "o", op.o, rows * shape.head_dim);
  check_rows(shape, "lse", op.lse, rows);
  check_rows(shape, "key_begin", op.key_begin, shape.tokens);
  check_rows(shape, "key_end", op.key_end, shape.tokens);
  const bool few_queries = shape.tokens <= most_decode_queries;
  const auto variant = op.variant.value_or(few_queries ? AttentionVariant::decode : usual_variant(device));
  if (variant == AttentionVariant::decode) return record_decode(recorder, shape, op);
  const Plan plan = plan_of(device, shape.head_dim, variant, op.k);
  const auto entry = plan.entry(device, "forward");
  for_slices(device, shape, [&](const AttentionSlice& slice) {
    const std::uint32_t workgroups = groups_for(slice.tokens.end - slice.tokens.begin, plan.rows);
    recorder.dispatch(entry,
                      {gpu::read(part(op.q, slice.heads)), gpu::read(part(op.k, slice.key_heads)),
                       gpu::read(part(op.v, slice.key_heads)), gpu::read(op.key_begin), gpu::read(op.key_end),
                       gpu::write(part(op.o, slice.tokens)), gpu::write(op.lse)},
                      slice.params, {workgroups, slice.heads.end - slice.heads.begin}, shape.work(2, 2));
  });
}

void record(gpu::Recorder& recorder, const AttentionBackward& op) {
  gpu::Device& device = recorder.device();
  const Shape shape = shape_of(op.q, op.k, op.v, op.pairs);
  check_backward(shape, op);
  record_delta(recorder, shape, op);
  const Plan plan = plan_of(device, shape.head_dim, op.variant.value_or(usual_variant(device)), op.k);
  const auto queries = plan.entry(device, "query_gradients");
  const auto keys = plan.entry(device, "key_gradients");
  for_slices(device, shape, [&](const AttentionSlice& slice) {
    const std::uint32_t workgroups = groups_for(slice.tokens.end - slice.tokens.begin, plan.rows);
    const Tensor q = part(op.q, slice.heads), d_o = part(op.d_o, slice.tokens);
    const Tensor k = part(op.k, slice.key_heads), v = part(op.v, slice.key_heads);
    recorder.dispatch(queries,
                      {gpu::read(q), gpu::read(k), gpu::read(v), gpu::read(op.key_begin), gpu::read(op.key_end),
                       gpu::read(d_o), gpu::read(op.lse), gpu::read(op.delta), gpu::write(part(op.dq, slice.heads))},
                      slice.params, {workgroups, slice.heads.end - slice.heads.begin}, shape.work(3, 3));
    recorder.dispatch(keys,
                      {gpu::read(q), gpu::read(k), gpu::read(v), gpu::read(op.query_end), gpu::read(d_o),
                       gpu::read(op.lse), gpu::read(op.delta), gpu::read_write(part(op.dk, slice.key_heads)),
                       gpu::read_write(part(op.dv, slice.key_heads))},
                      slice.params,
                      {groups_for(shape.tokens, plan.rows), slice.key_heads.end - slice.key_heads.begin},
                      shape.work(4, 4));
  });
}

}  // namespace nibble
