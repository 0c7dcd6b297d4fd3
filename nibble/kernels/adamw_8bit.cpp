#include "nibble/kernels/adamw_8bit.h"

#include "nibble/base/dynamic_map.h"
#include "nibble/base/error.h"
#include "nibble/kernels/flat_kernel.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>
#include <array>

namespace nibble {
namespace {

constexpr std::uint32_t words_of_block = moment_block / 4;

std::uint32_t blocks_of(std::uint32_t size) { return size / moment_block + (size % moment_block > 0 ? 1 : 0); }

// A lane a word, and on the software adapter the lanes of one vector.
gpu::Kernel block_kernel(gpu::Device& device) {
  const std::uint32_t lanes = device.info().type == gpu::AdapterType::software ? 8 : words_of_block;
  gpu::Prelude prelude;
  prelude.constant("WORKGROUP", lanes);
  return kernel(device, "adamw_8bit", prelude, {"grid", "row_reduce", "adamw"});
}

}  // namespace

Moments8Bit make_moments_8bit(gpu::Device& device, std::uint32_t size) {
  const std::uint32_t blocks = blocks_of(size);
  return {.first_codes = device.tensor(DType::u32, {blocks, words_of_block}, "first moment"),
          .second_codes = device.tensor(DType::u32, {blocks, words_of_block}, "second moment"),
          .first_absmax = device.tensor(DType::f32, {blocks}, "first moment's absmax"),
          .second_absmax = device.tensor(DType::f32, {blocks}, "second moment's absmax"),
          .skipped = 0};
}

Tensor moment_maps(gpu::Device& device) {
  std::array<float, 512> maps{};
  std::copy(dynamic_map().begin(), dynamic_map().end(), maps.begin());
  std::copy(unsigned_dynamic_map().begin(), unsigned_dynamic_map().end(), maps.begin() + 256);
  return device.tensor<float>(DType::f32, {2, 256}, maps, "maps of the moments");
}

void record(gpu::Recorder& recorder, const AdamW8Bit& op) {
  auto& device = recorder.device();
  const Tensor weights = flat(op.weights, "adamw_8bit"), gradients = flat(op.gradients, "adamw_8bit");
  const std::uint32_t size = weights.dim(0), blocks = blocks_of(size);
  expect_shape(weights, DType::f32, {size}, "adamw_8bit", "weights");
  expect_shape(gradients, DType::f32, {size}, "adamw_8bit", "gradients");
  expect_shape(op.moments.first_codes, DType::u32, {blocks, words_of_block}, "adamw_8bit", "first_codes");
  expect_shape(op.moments.second_codes, DType::u32, {blocks, words_of_block}, "adamw_8bit", "second_codes");
  const std::uint32_t skipped = op.moments.skipped;
  check(skipped < blocks_of_binding, "adamw_8bit", "{} blocks are skipped; below {} can be.", skipped, blocks_of_binding);
  expect_shape(op.moments.first_absmax, DType::f32, {skipped + blocks}, "adamw_8bit", "first_absmax");
  expect_shape(op.moments.second_absmax, DType::f32, {skipped + blocks}, "adamw_8bit", "second_absmax");
  expect_shape(op.maps, DType::f32, {2, 256}, "adamw_8bit", "maps");
  expect_shape(op.norm_and_factor, DType::f32, {2}, "adamw_8bit", "norm_and_factor");

  AdamWParams params = adamw_params(op.rule);
  params.skipped = skipped;
  const auto entry = block_kernel(device);
  for (const auto slice : gpu::binding_slices(device, blocks, {moment_block * sizeof(float), moment_block, sizeof(float)})) {
    const std::uint32_t begin = slice.begin * moment_block;
    const std::uint32_t end = slice.end == blocks ? size : slice.end * moment_block;
    params.count = end - begin;
    const auto codes_part = [&](const Tensor& tensor) { return gpu::read_write(tensor.rows(slice.begin, slice.end)); };
    const auto absmax_part = [&](const Tensor& tensor) { return gpu::read_write(tensor.rows(slice.begin, slice.end + skipped)); };
    recorder.dispatch(entry,
                      {gpu::read(op.norm_and_factor), gpu::read(op.maps), gpu::read(gradients.rows(begin, end)),
                       gpu::read_write(weights.rows(begin, end)), codes_part(op.moments.first_codes),
                       absmax_part(op.moments.first_absmax), codes_part(op.moments.second_codes),
                       absmax_part(op.moments.second_absmax)},
                      params, gpu::linear_grid(device, slice.end - slice.begin),
                      {.bytes = 16.0 * params.count, .flops = 60.0 * params.count});
  }
}

}  // namespace nibble
