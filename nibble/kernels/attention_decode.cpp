#include "nibble/kernels/attention_decode.h"

#include "nibble/kernels/row_kernel.h"

#include <algorithm>

namespace nibble {

DecodeCut decode_cut(const gpu::Device& device, std::uint32_t queries, std::uint32_t most_keys, std::uint32_t least_part_keys) {
  constexpr std::uint32_t tile = 32, most_of_one = 128;
  if (queries > attention_part_rows || most_keys <= most_of_one) return {.parts = 1, .keys = most_keys};
  const auto groups = [](std::uint32_t rows, std::uint32_t size) { return (rows + size - 1) / size; };
  const std::uint32_t usual = device.info().type == gpu::AdapterType::software ? 512 : tile;
  const std::uint32_t least = least_part_keys ? least_part_keys : usual;
  const std::uint32_t keys = std::max(least, groups(groups(most_keys, tile), attention_part_rows / queries) * tile);
  return {.parts = groups(most_keys, keys), .keys = keys};
}

std::uint32_t decode_heads(std::uint32_t group) {
  std::uint32_t heads = std::min(group, 4u);
  while (group % heads != 0) --heads;
  return heads;
}

void check_parts(const AttentionParts& parts, std::uint32_t heads, std::uint32_t head_dim) {
  expect_shape(parts.o, DType::f32, {attention_part_rows, heads * head_dim}, "attention", "parts.o");
  expect_shape(parts.numbers, DType::f32, {attention_part_rows, heads, 2}, "attention", "parts.numbers");
}

void record(gpu::Recorder& recorder, const PartsSum& op) {
  const std::uint32_t tokens = op.params.last_token - op.params.first_token;
  gpu::Prelude prelude;
  prelude.constant("HEAD_DIM", op.head_dim).constant("MOST_PARTS", attention_part_rows);
  recorder.dispatch(kernel(recorder.device(), "attention_decode_parts", prelude, {"attention"}, "forward"),
                    {gpu::read(op.parts.o), gpu::read(op.parts.numbers), gpu::write(op.o), gpu::write(op.lse)}, op.params,
                    {tokens, op.heads}, {.bytes = 4.0 * op.params.parts * tokens * op.heads * op.head_dim});
}

}  // namespace nibble
