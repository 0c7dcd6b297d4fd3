#include "nibble/kernels/expert_route.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct ExpertRouteParams {
  std::uint32_t rows;
};

gpu::Kernel route_kernel(gpu::Device& device, std::string_view entry, std::uint32_t experts, std::uint32_t chosen, bool normalised) {
  check(chosen >= 1 && chosen <= experts && experts <= most_experts, "expert route", "{} of {} experts were asked for; 1 to all of at most {} can be.",
        chosen, experts, most_experts);
  const RowKernel row_kernel(device, experts);
  gpu::Prelude prelude = row_kernel.prelude(DType::f32);
  prelude.constant("EXPERTS", experts).constant("CHOSEN", chosen).constant("NORMALISED", normalised);
  return nibble::kernel(device, "expert_route", prelude, {"grid", "row_reduce"}, entry);
}

}  // namespace

void record(gpu::Recorder& recorder, const ExpertRoute& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.logits.dim(0), experts = op.logits.dim(1), chosen = op.expert.dim(1);
  expect_shape(op.logits, DType::f32, {rows, experts}, "expert route", "logits");
  expect_shape(op.expert, DType::u32, {rows, chosen}, "expert route", "expert");
  expect_shape(op.weight, DType::f32, {rows, chosen}, "expert route", "weight");
  const auto kernel = route_kernel(device, "forward", experts, chosen, op.normalised);
  for (const auto slice : gpu::binding_slices(device, rows, {4ull * experts, 4ull * chosen})) {
    const auto part = [&](const Tensor& tensor) { return tensor.rows(slice.begin, slice.end); };
    const std::uint32_t count = slice.end - slice.begin;
    recorder.dispatch(kernel, {gpu::read(part(op.logits)), gpu::write(part(op.expert)), gpu::read_write(part(op.weight))}, ExpertRouteParams{count},
                      gpu::linear_grid(device, count), {.bytes = 4.0 * count * (experts + 2 * chosen), .flops = 4.0 * count * experts});
  }
}

void record(gpu::Recorder& recorder, const ExpertRouteBackward& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.logits.dim(0), experts = op.logits.dim(1), chosen = op.expert.dim(1);
  expect_shape(op.logits, DType::f32, {rows, experts}, "expert route backward", "logits");
  expect_shape(op.expert, DType::u32, {rows, chosen}, "expert route backward", "expert");
  expect_shape(op.weight, DType::f32, {rows, chosen}, "expert route backward", "weight");
  expect_shape(op.d_weight, DType::f32, {rows, chosen}, "expert route backward", "d_weight");
  expect_shape(op.d_logits, DType::f32, {rows, experts}, "expert route backward", "d_logits");
  const auto kernel = route_kernel(device, "backward", experts, chosen, op.normalised);
  for (const auto slice : gpu::binding_slices(device, rows, {4ull * experts, 4ull * chosen})) {
    const auto part = [&](const Tensor& tensor) { return tensor.rows(slice.begin, slice.end); };
    const std::uint32_t count = slice.end - slice.begin;
    recorder.dispatch(kernel,
                      {gpu::read(part(op.logits)), gpu::read(part(op.expert)), gpu::read(part(op.weight)), gpu::read(part(op.d_weight)),
                       gpu::write(part(op.d_logits))},
                      ExpertRouteParams{count}, gpu::linear_grid(device, count),
                      {.bytes = 4.0 * count * (2 * experts + 3 * chosen), .flops = 6.0 * count * experts});
  }
}

}  // namespace nibble
