#include "nibble/kernels/cross_entropy.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct CrossEntropyParams {
  std::uint32_t rows, columns;
  float factor;
  std::uint32_t weighted;
  float gamma;
};

void check_shapes(const CrossEntropy& op) {
  const std::uint32_t rows = op.logits.dim(0), columns = op.logits.dim(1);
  expect_shape(op.logits, DType::f32, {rows, columns}, "cross_entropy", "logits");
  expect_shape(op.labels, DType::u32, {rows}, "cross_entropy", "labels");
  expect_shape(op.loss, DType::f32, {rows}, "cross_entropy", "loss");
  expect_shape(op.correct, DType::u32, {rows}, "cross_entropy", "correct");
  if (op.weights) expect_shape(op.weights, DType::f32, {rows}, "cross_entropy", "weights");
  check(op.focal_gamma >= 0, "cross_entropy", "The focal gamma is {}; it is at least 0.", op.focal_gamma);
  if (!op.d_logits.data) return;
  expect_shape(op.d_logits, rows, columns, "cross_entropy", "d_logits");
  const bool in_place = op.d_logits.data.buffer() == op.logits.buffer() && op.d_logits.data.offset() == op.logits.offset();
  check(is_scaled(op.d_logits) != in_place, "cross_entropy",
        "A gradient in f32 takes the logits' own place, and one in f16 another.");
}

}  // namespace

void record(gpu::Recorder& recorder, const CrossEntropy& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.logits.dim(0), columns = op.logits.dim(1);
  check_shapes(op);
  const bool has_gradient = static_cast<bool>(op.d_logits.data), scaled = is_scaled(op.d_logits);
  const RowKernel row_kernel(device, columns);
  const auto entry = row_kernel.kernel(device, "cross_entropy",
                                       !has_gradient ? "loss_only" : scaled ? "loss_and_scaled_slopes" : "loss_and_slopes",
                                       row_kernel.prelude(scaled ? DType::f16 : DType::f32), "cross_entropy");
  const std::uint64_t row_bytes = std::uint64_t{columns} * sizeof(float);
  for (const auto slice : gpu::binding_slices(device, rows, {row_bytes, row_bytes / 2, sizeof(float)})) {
    const std::uint32_t count = slice.end - slice.begin;
    const auto part = [&](const Tensor& tensor) { return tensor.rows(slice.begin, slice.end); };
    const auto logits = gpu::read_write(part(op.logits));
    const auto labels = gpu::read(part(op.labels));
    const auto loss = gpu::write(part(op.loss)), correct = gpu::write(part(op.correct));
    const CrossEntropyParams params{count, columns, op.factor, op.weights ? 1u : 0u, op.focal_gamma};
    const auto grid = gpu::linear_grid(device, count);
    const gpu::Work work{.bytes = double(count) * double(row_bytes + (has_gradient ? data_row_bytes(op.d_logits) : 0)),
                         .flops = (has_gradient ? 7.0 : 4.0) * count * columns};
    if (!has_gradient) {
      recorder.dispatch(entry, {logits, labels, loss, correct}, params, grid, work);
      continue;
    }
    // Without weights something has to be bound that nothing reads.
    const auto weights = gpu::read(part(op.weights ? op.weights : op.labels));
    if (scaled) {
      recorder.dispatch(entry,
                        {logits, labels, loss, correct, weights, gpu::write(part(op.d_logits.data)),
                         gpu::write(part(op.d_logits.scale))},
                        params, grid, work);
    } else {
      recorder.dispatch(entry, {logits, labels, loss, correct, weights}, params, grid, work);
    }
  }
}

}  // namespace nibble
