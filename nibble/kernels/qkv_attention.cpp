#include "nibble/kernels/qkv_attention.h"

#include "nibble/base/error.h"
#include "nibble/kernels/attention.h"
#include "nibble/kernels/attention_step.h"
#include "nibble/kernels/pack_heads.h"
#include "nibble/kernels/pack_rows.h"
#include "nibble/kernels/packed_attention.h"
#include "nibble/kernels/qk_norm_rope.h"
#include "nibble/kernels/qkv_heads.h"
#include "nibble/kernels/row_kernel.h"
#include "nibble/kernels/unpack_rows.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr std::string_view in_qkv_attention = "qkv_attention";

struct Sizes {
  std::uint32_t tokens, heads, key_heads, dim;

  explicit Sizes(const QkvAttention& op)
      : tokens(op.qkv.data.dim(0)),
        heads(op.heads),
        key_heads(op.key_heads),
        dim(op.qkv.data.dim(1) / (heads + 2 * key_heads)) {}
  std::uint32_t queries() const { return heads * dim; }
  std::uint32_t keys() const { return key_heads * dim; }
  std::uint32_t row() const { return queries() + 2 * keys(); }
};

void check_sizes(const QkvAttention& op) {
  check(op.qkv.data && op.qkv.data.rank() == 2 && op.heads > 0 && op.key_heads > 0, in_qkv_attention, "A projection is missing.");
  const Sizes s(op);
  check(op.qkv.data.dim(1) == s.row() && s.dim > 0, in_qkv_attention, "A projection of shape {} does not hold {} + 2 x {} heads.",
        op.qkv.data.shape_text(), op.heads, op.key_heads);
  const QkvAttentionShape& room = op.room.shape;
  check(s.tokens <= room.tokens && s.heads == room.heads && s.key_heads == room.key_heads && s.dim == room.head_dim &&
            is_scaled(op.qkv) == (room.path != ProductPath::f32),
        in_qkv_attention, "The room is for {} tokens, {} heads on {} of {}, not for {}, {} on {} of {}, or for another path.", room.tokens,
        room.heads, room.key_heads, room.head_dim, s.tokens, s.heads, s.key_heads, s.dim);
  expect_shape(op.o, s.tokens, s.queries(), in_qkv_attention, "o");
  expect_shape(op.lse, DType::f32, {s.heads, s.tokens}, in_qkv_attention, "lse");
}

// The first tokens' share of a room's tensor.
Tensor first(const Tensor& tensor, std::initializer_list<std::uint32_t> dims) { return tensor.part(0, dims); }

// On matrix units.
class Packed {
 public:
  Packed(gpu::Recorder& recorder, const QkvAttention& op) : rec_(recorder), op_(op), s_(op) {}

  void forward() {
    const PackedHeads of = pack();
    record(rec_, PackedAttention{.of = of, .o = op_.o, .lse = op_.lse});
  }

  // Of keys and values that are in the caches already.
  void forward_from_caches() {
    record(rec_, PackedAttention{.of = pack(), .o = op_.o, .lse = op_.lse, .k_cache = op_.k_cache, .v_cache = op_.v_cache});
  }

  void backward(const QkvAttentionBackward& op) {
    const QkvAttentionRoom& room = op_.room;
    const std::uint32_t parts = packed_attention_parts({s_.tokens, s_.heads, s_.key_heads, s_.dim});
    const Tensor dq = first(room.dq, {s_.tokens, s_.queries()});
    const Tensor dkv = first(room.dkv, {parts, s_.tokens, 2 * s_.keys()});
    record(rec_, PackedAttentionBackward{.of = pack(), .query_end = op.query_end, .o = op_.o, .d_o = op.d_o, .lse = op_.lse,
                                         .numbers = first(room.numbers, {2, s_.heads, s_.tokens}), .dq = dq, .dkv = dkv});
    record(rec_, PackHeadsBackward{.dq = dq, .dkv = dkv, .qkv = op_.qkv, .heads = s_.heads, .key_heads = s_.key_heads,
                                   .q_norm = op_.q_norm, .k_norm = op_.k_norm, .position = op_.position, .table = op_.table,
                                   .eps = op_.eps, .d_qkv = op.d_qkv});
  }

 private:
  PackedHeads pack() {
    const PackedHeads of{.qk = first_rows(op_.room.qk, s_.tokens), .qkv = op_.qkv,
                         .v_most = first(op_.room.v_most, {s_.tokens}), .heads = s_.heads, .key_heads = s_.key_heads,
                         .key_begin = op_.key_begin, .key_end = op_.key_end, .pairs = op_.pairs,
                         .plan_tokens = op_.room.shape.tokens, .tiles = op_.room.shape.tiles};
    record(rec_, PackHeads{.qkv = op_.qkv, .heads = s_.heads, .key_heads = s_.key_heads, .q_norm = op_.q_norm,
                           .k_norm = op_.k_norm, .position = op_.position, .table = op_.table, .eps = op_.eps, .qk = of.qk,
                           .v_most = of.v_most});
    return of;
  }

  gpu::Recorder& rec_;
  const QkvAttention& op_;
  Sizes s_;
};

// In f32, by heads.
class ByHeads {
 public:
  ByHeads(gpu::Recorder& recorder, const QkvAttention& op)
      : rec_(recorder), op_(op), s_(op), scaled_(is_scaled(op.qkv)) {
    const QkvAttentionRoom& room = op.room;
    q_ = first(room.q, {s_.heads, s_.tokens, s_.dim});
    k_ = op.k_cache ? op.k_cache : first(room.k, {s_.key_heads, s_.tokens, s_.dim});
    v_ = op.v_cache ? op.v_cache : first(room.v, {s_.key_heads, s_.tokens, s_.dim});
    if (!op.q_norm) return;
    q_inv_rms_ = first(room.q_inv_rms, {s_.tokens, s_.heads});
    k_inv_rms_ = first(room.k_inv_rms, {s_.tokens, s_.key_heads});
  }

  void forward() {
    const Tensor o = scaled_ ? first(op_.room.o, {s_.tokens, s_.queries()}) : op_.o.data;
    if (!one_step(o)) attend(o);
    if (scaled_) record(rec_, PackRows{.x = o, .y = op_.o});
  }

  void attend(const Tensor& o) {
    to_heads();
    record(rec_, Attention{.q = q_, .k = k_, .v = v_, .key_begin = op_.key_begin, .key_end = op_.key_end, .o = o,
                           .lse = op_.lse, .pairs = op_.pairs, .parts = op_.room.parts, .most_keys = most_keys()});
  }

  void backward(const QkvAttentionBackward& op) {
    const QkvAttentionRoom& room = op_.room;
    to_heads();
    const Tensor dq = first(room.dq, {s_.heads, s_.tokens, s_.dim}), dk = first(room.dk, {s_.key_heads, s_.tokens, s_.dim});
    const Tensor dv = first(room.dv, {s_.key_heads, s_.tokens, s_.dim});
    record(rec_, AttentionBackward{.q = q_, .k = k_, .v = v_, .key_begin = op_.key_begin, .key_end = op_.key_end,
                                   .query_end = op.query_end, .o = f32(op_.o, room.o), .d_o = f32(op.d_o, room.d_o),
                                   .lse = op_.lse, .delta = first(room.delta, {s_.heads, s_.tokens}), .dq = dq, .dk = dk,
                                   .dv = dv, .pairs = op_.pairs});
    const Tensor dx = scaled_ ? first(room.d_qkv, {s_.tokens, s_.row()}) : op.d_qkv.data;
    record(rec_, QkNormRopeBackward{.dy = dq, .x = op_.qkv, .weight = op_.q_norm, .position = op_.position, .table = op_.table,
                                    .inv_rms = q_inv_rms_, .dx = dx});
    record(rec_, QkNormRopeBackward{.dy = dk, .x = op_.qkv, .weight = op_.k_norm, .position = op_.position, .table = op_.table,
                                    .inv_rms = k_inv_rms_, .dx = dx, .first_column = s_.queries()});
    record(rec_, FromHeads{.dy = dv, .dx = dx, .first_column = s_.queries() + s_.keys()});
    if (scaled_) record(rec_, PackRows{.x = dx, .y = op.d_qkv});
  }

  // Rotated keys, and values, alone.
  void put_keys() {
    QkvHeads keys = all_heads();
    keys.keys_only = true;
    if (qkv_heads_fits(rec_.device(), keys)) return record(rec_, keys);
    put_keys_in_turn();
  }

 private:
  QkvHeads all_heads() const {
    return {.qkv = op_.qkv, .q_norm = op_.q_norm, .k_norm = op_.k_norm, .position = op_.position, .table = op_.table, .eps = op_.eps,
            .q = q_, .k = k_, .v = v_, .key_end = op_.key_end};
  }

  void put_keys_in_turn() {
    check(!op_.apart && k_.dtype() == DType::f32, in_qkv_attention, "Tokens of several texts, or keys in f16, came for caches beyond a binding.");
    record(rec_, QkNormRope{.x = op_.qkv, .weight = op_.k_norm, .position = op_.position, .table = op_.table, .y = k_,
                            .inv_rms = k_inv_rms_, .eps = op_.eps, .row_offset = op_.first_key, .first_column = s_.queries()});
    record(rec_, ToHeads{.x = op_.qkv, .y = v_, .row_offset = op_.first_key, .first_column = s_.queries() + s_.keys()});
  }

  std::uint32_t most_keys() const { return op_.most_keys > 0 ? op_.most_keys : op_.first_key + s_.tokens; }

  // Whether attention of one token, or one each of several texts, is recorded, from its projection; processors are faster without workgroup
  // memory.
  bool one_step(const Tensor& o) {
    const bool one_each = s_.tokens == 1 || (op_.apart && !op_.own_end);
    if (!op_.k_cache || !one_each || rec_.device().info().type == gpu::AdapterType::software) return false;
    const AttentionStep step{.qkv = op_.qkv, .q_norm = op_.q_norm, .k_norm = op_.k_norm, .position = op_.position,
                             .table = op_.table, .eps = op_.eps, .k = k_, .v = v_, .heads = s_.heads, .key_begin = op_.key_begin,
                             .key_end = op_.key_end, .o = o, .lse = op_.lse, .parts = op_.room.parts, .most_keys = most_keys()};
    if (!attention_step_fits(rec_.device(), step)) return false;
    record(rec_, step);
    return true;
  }

  void to_heads() {
    if (op_.k_cache && qkv_heads_fits(rec_.device(), all_heads())) return record(rec_, all_heads());
    record(rec_, QkNormRope{.x = op_.qkv, .weight = op_.q_norm, .position = op_.position, .table = op_.table, .y = q_,
                            .inv_rms = q_inv_rms_, .eps = op_.eps});
    put_keys_in_turn();
  }

  // The operand itself, or unpacked.
  Tensor f32(const Operand& operand, const Tensor& storage) {
    if (!scaled_) return operand.data;
    const Tensor y = first(storage, {s_.tokens, s_.queries()});
    record(rec_, UnpackRows{.x = operand, .y = y});
    return y;
  }

  gpu::Recorder& rec_;
  const QkvAttention& op_;
  Sizes s_;
  bool scaled_;
  Tensor q_, k_, v_, q_inv_rms_, k_inv_rms_;
};

// Software adapters are faster without matrix units.
bool is_packed(const gpu::Device& device, const QkvAttentionShape& shape) {
  const bool fits = shape.path == ProductPath::matrix &&
                    packed_attention_fits(device, {shape.tokens, shape.heads, shape.key_heads, shape.head_dim});
  check(fits || !shape.packed.value_or(false), in_qkv_attention, "Matrix units were asked for where they do not suit.");
  return shape.packed.value_or(fits && device.info().type != gpu::AdapterType::software);
}

// Whether a pass that meets earlier rows of the caches is for matrix units: not one of a few tokens (attention.h), or of several texts.
bool packs_with_earlier(const QkvAttention& op) {
  return op.k_cache.dtype() == DType::f16 && !op.apart && op.qkv.data.dim(0) > most_decode_queries;
}

// One description of every tensor serves making and counting: make(tensor, dtype, dims).
template <typename Make>
void visit(QkvAttentionRoom& r, const QkvAttentionShape& s, bool packed, const Make& make) {
  const std::uint32_t tokens = s.tokens, queries = s.heads * s.head_dim, keys = s.key_heads * s.head_dim;
  const DType f = DType::f32;
  // Generation keeps keys and values in f32.
  const bool by_heads = !packed || !s.backward;
  if (packed) {
    make(r.qk.data, DType::f16, {tokens, queries + keys});
    make(r.qk.scale, f, {tokens});
    make(r.v_most, f, {tokens});
  }
  if (by_heads) {
    make(r.q, f, {s.heads, tokens, s.head_dim});
    for (Tensor* keys_or_values : {&r.k, &r.v}) {
      if (!packed) make(*keys_or_values, f, {s.key_heads, tokens, s.head_dim});
    }
    make(r.q_inv_rms, f, {tokens, s.heads});
    make(r.k_inv_rms, f, {tokens, s.key_heads});
    if (s.path != ProductPath::f32) make(r.o, f, {tokens, queries});
  }
  if (!s.backward) {
    make(r.parts.o, f, {attention_part_rows, queries});
    make(r.parts.numbers, f, {attention_part_rows, s.heads, 2});
    return;
  }
  make(r.dq, f, {tokens, queries});
  if (packed) {
    make(r.dkv, f, {packed_attention_most_rows({tokens, s.heads, s.key_heads, s.head_dim}), 2 * keys});
    make(r.numbers, f, {2, s.heads, tokens});
    return;
  }
  make(r.dk, f, {s.key_heads, tokens, s.head_dim});
  make(r.dv, f, {s.key_heads, tokens, s.head_dim});
  make(r.delta, f, {s.heads, tokens});
  if (s.path == ProductPath::f32) return;
  make(r.d_o, f, {tokens, queries});
  make(r.d_qkv, f, {tokens, queries + 2 * keys});
}

}  // namespace

void lay_out(QkvAttentionRoom& room, const gpu::Device& device, const QkvAttentionShape& shape, const MakeTensor& make) {
  room.shape = shape;
  room.packed = is_packed(device, shape);
  visit(room, shape, room.packed, make);
}

QkvAttentionRoom make_qkv_attention_room(gpu::Device& device, const QkvAttentionShape& shape) {
  QkvAttentionRoom room;
  lay_out(room, device, shape, [&](Tensor& tensor, DType dtype, std::initializer_list<std::uint32_t> dims) {
    tensor = device.tensor(dtype, dims, "attention room");
  });
  return room;
}

std::uint64_t qkv_attention_room_bytes(const gpu::Device& device, const QkvAttentionShape& shape) {
  std::uint64_t bytes = 0;
  QkvAttentionRoom unused;
  lay_out(unused, device, shape, [&](Tensor&, DType dtype, std::initializer_list<std::uint32_t> dims) {
    bytes += gpu::buffer_bytes(dtype, dims);
  });
  return bytes;
}

void record(gpu::Recorder& recorder, const QkvAttention& op) {
  check_sizes(op);
  check(static_cast<bool>(op.k_cache) == static_cast<bool>(op.v_cache) && (op.k_cache || op.first_key == 0), in_qkv_attention,
        "Caches of keys and values must be given together.");
  check(!op.k_cache || op.room.q, in_qkv_attention, "The room has no place for a pass with a cache.");
  const bool meets_earlier = op.k_cache && !op.own_end;
  if (!op.room.packed || (meets_earlier && !packs_with_earlier(op))) return ByHeads(recorder, op).forward();
  if (meets_earlier) {
    ByHeads(recorder, op).put_keys();
    return Packed(recorder, op).forward_from_caches();
  }
  QkvAttention own = op;
  if (op.k_cache) own.key_begin = op.own_begin, own.key_end = op.own_end;
  Packed(recorder, own).forward();
  if (op.k_cache) ByHeads(recorder, op).put_keys();
}

void record(gpu::Recorder& recorder, const QkvAttentionBackward& op) {
  const QkvAttention& forward = op.forward;
  check_sizes(forward);
  const Sizes s(forward);
  check(forward.room.shape.backward && !forward.k_cache, in_qkv_attention, "The backward needs a room for it, and no cache.");
  expect_shape(op.d_o, s.tokens, s.queries(), in_qkv_attention, "d_o");
  expect_shape(op.d_qkv, s.tokens, s.row(), in_qkv_attention, "d_qkv");
  if (forward.room.packed) return Packed(recorder, forward).backward(op);
  ByHeads(recorder, forward).backward(op);
}

}  // namespace nibble
