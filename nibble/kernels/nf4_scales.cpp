#include "nibble/kernels/nf4_scales.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

constexpr std::uint32_t scale_block = 256, scale_lanes = 64;

struct Nf4ScalesParams {
  std::array<Nf4ScalePart, DecodeNf4Scales::most_parts> parts;
  std::uint32_t first_word, words;
  std::uint32_t nothing = 0, unused = 0;
};
static_assert(sizeof(Nf4ScalePart) == 16);

// Every index that the kernel makes lies in what is bound then.
void check_parts(const DecodeNf4Scales& op) {
  check(!op.parts.empty() && op.parts.size() <= DecodeNf4Scales::most_parts, "nf4_scales", "{} parts came; 1 to {} are decoded.", op.parts.size(),
        DecodeNf4Scales::most_parts);
  std::uint64_t end = 0;
  for (const Nf4ScalePart& part : op.parts) {
    check(part.count > 0 && part.of_matrix > 0 && part.count % part.of_matrix == 0, "nf4_scales", "{} scales are no matrices of {} scales.",
          part.count, part.of_matrix);
    check(part.first % 4 == 0 && part.first >= end, "nf4_scales", "A part begins at scale {}; a multiple of 4 from {} on is needed.", part.first, end);
    end = std::uint64_t{part.first} + part.count;
    const std::uint64_t of_matrix = (std::uint64_t{part.of_matrix} + scale_block - 1) / scale_block;
    const std::uint64_t blocks = part.first_block + part.count / part.of_matrix * of_matrix;
    check(end <= op.absmax.size() && blocks <= op.blocks.dim(0), "nf4_scales", "A part ends at scale {} and block {}; there are {} and {}.", end, blocks,
          op.absmax.size(), op.blocks.dim(0));
  }
  check(op.parts.front().first == 0, "nf4_scales", "The first part begins at scale {}, not at 0.", op.parts.front().first);
}

}  // namespace

void record(gpu::Recorder& recorder, const DecodeNf4Scales& op) {
  auto& device = recorder.device();
  check(op.codes.rank() == 1 && op.blocks.rank() == 2, "nf4_scales", "Codes {} and blocks {} came.", op.codes.shape_text(), op.blocks.shape_text());
  const std::uint32_t words = op.codes.dim(0);
  expect_shape(op.codes, DType::u32, {words}, "nf4_scales", "codes");
  expect_shape(op.blocks, DType::f32, {op.blocks.dim(0), 2}, "nf4_scales", "blocks");
  expect_shape(op.map, DType::f32, {256}, "nf4_scales", "map");
  expect_shape(op.absmax, DType::f32, {4 * words}, "nf4_scales", "absmax");
  check_parts(op);
  Nf4ScalesParams params{.parts = {}, .first_word = 0, .words = 0};
  std::copy(op.parts.begin(), op.parts.end(), params.parts.begin());
  gpu::Prelude prelude;
  prelude.constant("PARTS", static_cast<std::uint32_t>(DecodeNf4Scales::most_parts)).constant("BLOCK", scale_block);
  const auto entry = kernel(device, "nf4_scales", prelude, {"grid"});
  const Tensor absmax = op.absmax.view({words, 4});
  for (const auto range : gpu::binding_slices(device, words, {4, 16})) {
    params.first_word = range.begin;
    params.words = range.end - range.begin;
    recorder.dispatch(entry,
                      {gpu::read(op.codes.rows(range.begin, range.end)), gpu::read(op.blocks), gpu::read(op.map),
                       gpu::write(absmax.rows(range.begin, range.end))},
                      params, gpu::linear_grid(device, (params.words + scale_lanes - 1) / scale_lanes), {.bytes = 20.0 * params.words});
  }
}

}  // namespace nibble
