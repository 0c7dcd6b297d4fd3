#include "nibble/kernels/int8.h"

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr std::uint32_t block = 64, block_words = block / 4;

struct Int8Params {
  std::uint32_t count;
  float factor;
};

}  // namespace

void record(gpu::Recorder& recorder, const DequantizeInt8& op) {
  auto& device = recorder.device();
  const Tensor& out = op.out.data;
  const std::uint64_t elements = out.size();
  check(op.out.tile == 0 && elements % block == 0 && op.w.codes.bytes() == elements && op.w.scales.size() * block == elements, "int8",
        "{} bytes of codes and {} scales do not make a weight {} in rows.", op.w.codes.bytes(), op.w.scales.size(), out.shape_text());
  gpu::Prelude prelude;
  if (out.dtype() == DType::f16) prelude.enable("f16");
  prelude.alias("Element", name_of(out.dtype()));
  const auto entry = kernel(device, "int8_dequantize", prelude, {"grid", "int8"});
  const auto blocks = static_cast<std::uint32_t>(elements / block);
  const Tensor codes(op.w.codes.buffer(), op.w.codes.offset(), DType::u32, {blocks, block_words});
  const Tensor values = out.view({blocks, block});
  for (const auto range : gpu::binding_slices(device, blocks, {block, 4, block * size_of(out.dtype())})) {
    const Int8Params params{.count = (range.end - range.begin) * block_words, .factor = 1.0f / op.out.scale};
    const Tensor slice = values.rows(range.begin, range.end);
    recorder.dispatch(entry,
                      {gpu::read(codes.rows(range.begin, range.end)), gpu::read(op.w.scales.rows(range.begin, range.end)), gpu::write(slice)},
                      params, gpu::linear_grid(device, (params.count + 63) / 64),
                      {.bytes = static_cast<double>(slice.bytes()) + (range.end - range.begin) * 68.0});
  }
}

}  // namespace nibble
