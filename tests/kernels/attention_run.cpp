#include "tests/kernels/attention_run.h"

namespace nibble::test {

std::vector<double> doubles(std::span<const float> values) { return {values.begin(), values.end()}; }
std::vector<float> floats(std::span<const double> values) { return {values.begin(), values.end()}; }

AttentionInputs::AttentionInputs(const AttentionCase& shape)
    : q(random_values(shape.query_values(), 1)),
      k(random_values(shape.key_values(), 2)),
      v(random_values(shape.key_values(), 3)),
      d_o(random_values(shape.query_values(), 4)) {}

AttentionBackward backward_of(const Attention& forward, const AttentionCase& shape, const Tensor& d_o,
                              const BackwardOutputs& outputs) {
  return {.q = forward.q,
          .k = forward.k,
          .v = forward.v,
          .key_begin = forward.key_begin,
          .key_end = forward.key_end,
          .query_end = upload_u32(shape.query_end()),
          .o = forward.o,
          .d_o = d_o,
          .lse = forward.lse,
          .delta = outputs.delta,
          .dq = outputs.dq,
          .dk = outputs.dk,
          .dv = outputs.dv,
          .variant = forward.variant};
}

AttentionOutputs run(const AttentionCase& shape, const AttentionInputs& inputs, AttentionVariant variant) {
  const std::uint32_t tokens = shape.tokens(), heads = shape.heads, key_heads = shape.key_heads, dim = shape.head_dim;
  GuardedTensor o(DType::f32, {tokens, heads * dim});
  GuardedTensor lse(DType::f32, {heads, tokens}), delta(DType::f32, {heads, tokens});
  GuardedTensor dq(DType::f32, {heads, tokens, dim}), dk(DType::f32, {key_heads, tokens, dim}),
      dv(DType::f32, {key_heads, tokens, dim});
  const Attention forward{.q = upload(inputs.q, {heads, tokens, dim}),
                          .k = upload(inputs.k, {key_heads, tokens, dim}),
                          .v = upload(inputs.v, {key_heads, tokens, dim}),
                          .key_begin = upload_u32(shape.key_begin()),
                          .key_end = upload_u32(shape.key_end()),
                          .o = o.tensor(),
                          .lse = lse.tensor(),
                          .variant = variant};
  const auto backward = backward_of(forward, shape, upload(inputs.d_o, {tokens, heads * dim}),
                                    {delta.tensor(), dq.tensor(), dk.tensor(), dv.tensor()});
  gpu::Recorder recorder(device());
  record(recorder, forward);
  record(recorder, backward);
  recorder.submit();
  for (const auto* output : {&o, &lse, &delta, &dq, &dk, &dv}) output->expect_guards_intact();
  return {download(o.tensor()), download(lse.tensor()), download(dq.tensor()), download(dk.tensor()),
          download(dv.tensor())};
}

}  // namespace nibble::test
