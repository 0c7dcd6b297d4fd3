#include "tests/kernels/qkv_run.h"

#include "nibble/kernels/qk_norm_rope.h"

namespace nibble::test {

QkvAttentionShape room_shape(const QkvCase& shape, const QkvMode& mode, std::uint32_t more) {
  return {.tokens = shape.tokens() + more, .heads = shape.attention.heads, .key_heads = shape.attention.key_heads,
          .head_dim = shape.dim(), .path = mode.path, .packed = mode.packed, .tiles = mode.tiles};
}

QkvAttention forward_of(const QkvCase& shape, const QkvMode& mode, const QkvInputs& inputs, const Operand& o, const Tensor& lse) {
  QkvAttention op{.qkv = upload_operand(inputs.qkv, shape.tokens(), shape.row(), mode.path),
                  .heads = shape.attention.heads,
                  .key_heads = shape.attention.key_heads,
                  .position = upload_u32(shape.positions()),
                  .table = upload(rope_table(512, shape.dim(), qkv_theta), {512, shape.dim() / 2, 2}),
                  .eps = qkv_eps,
                  .key_begin = upload_u32(shape.attention.key_begin()),
                  .key_end = upload_u32(shape.attention.key_end()),
                  .o = o,
                  .lse = lse,
                  .room = make_qkv_attention_room(device(), room_shape(shape, mode))};
  if (shape.norm) {
    op.q_norm = upload(std::span(inputs.norms).first(shape.dim()), {shape.dim()});
    op.k_norm = upload(std::span(inputs.norms).last(shape.dim()), {shape.dim()});
  }
  return op;
}

}  // namespace nibble::test
