#include "nibble/kernels/adamw.h"

#include "nibble/base/error.h"
#include "nibble/kernels/flat_kernel.h"
#include "nibble/kernels/row_kernel.h"

#include <cmath>

namespace nibble {

AdamWParams adamw_params(const AdamWRule& rule) {
  check(rule.step >= 1, "adamw", "Steps are counted from 1; 0 was given.");
  const auto step = static_cast<double>(rule.step);
  return {.decay = static_cast<float>(1 - rule.learning_rate * rule.weight_decay),
          .rest1 = static_cast<float>(1 - rule.beta1),
          .beta2 = static_cast<float>(rule.beta2),
          .rest2 = static_cast<float>(1 - rule.beta2),
          .step_size = static_cast<float>(rule.learning_rate / (1 - std::pow(rule.beta1, step))),
          .root_correction2 = static_cast<float>(std::sqrt(1 - std::pow(rule.beta2, step))),
          .epsilon = static_cast<float>(rule.epsilon)};
}

void record(gpu::Recorder& recorder, const AdamW& op) {
  auto& device = recorder.device();
  const Tensor weights = flat(op.weights, "adamw"), gradients = flat(op.gradients, "adamw"),
               first_moment = flat(op.first_moment, "adamw"), second_moment = flat(op.second_moment, "adamw");
  const std::uint32_t size = weights.dim(0);
  expect_shape(weights, DType::f32, {size}, "adamw", "weights");
  expect_shape(gradients, DType::f32, {size}, "adamw", "gradients");
  expect_shape(first_moment, DType::f32, {size}, "adamw", "first_moment");
  expect_shape(second_moment, DType::f32, {size}, "adamw", "second_moment");
  expect_shape(op.norm_and_factor, DType::f32, {2}, "adamw", "norm_and_factor");

  AdamWParams params = adamw_params(op.rule);
  const auto entry = flat_kernel(device, "adamw", "main", {}, {"grid", "adamw"});
  for (const auto slice : gpu::binding_slices(device, size, {sizeof(float)})) {
    params.count = slice.end - slice.begin;
    const auto part = [&](const Tensor& tensor) { return tensor.rows(slice.begin, slice.end); };
    recorder.dispatch(entry,
                      {gpu::read(op.norm_and_factor), gpu::read(part(gradients)), gpu::read_write(part(weights)),
                       gpu::read_write(part(first_moment)), gpu::read_write(part(second_moment))},
                      params, flat_grid(device, params.count), {.bytes = 28.0 * params.count, .flops = 14.0 * params.count});
  }
}

}  // namespace nibble
