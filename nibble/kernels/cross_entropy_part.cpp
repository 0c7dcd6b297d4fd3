#include "nibble/kernels/cross_entropy_part.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

constexpr std::string_view in_cross_entropy_part = "cross_entropy_part";

struct CrossEntropyPartParams {
  std::uint32_t rows, columns, first, begins, ends;
  float factor;
  std::uint32_t weighted;
  float gamma;
};

void check_shapes(const LogitsPart& part, const Tensor& labels, const Tensor& stats) {
  const std::uint32_t rows = part.logits.dim(0);
  expect_shape(part.logits, DType::f32, {rows, part.logits.dim(1)}, in_cross_entropy_part, "logits");
  expect_shape(labels, DType::u32, {rows}, in_cross_entropy_part, "labels");
  expect_shape(stats, DType::f32, {rows, 4}, in_cross_entropy_part, "stats");
}

gpu::Kernel kernel_of(gpu::Device& device, std::string_view entry, std::uint32_t columns, DType data) {
  const RowKernel row_kernel(device, columns);
  return row_kernel.kernel(device, "cross_entropy_part", entry, row_kernel.prelude(data), "cross_entropy");
}

}  // namespace

void record(gpu::Recorder& recorder, const CrossEntropyPart& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.part.logits.dim(0), columns = op.part.logits.dim(1);
  check_shapes(op.part, op.labels, op.stats);
  expect_shape(op.loss, DType::f32, {rows}, in_cross_entropy_part, "loss");
  expect_shape(op.correct, DType::u32, {rows}, in_cross_entropy_part, "correct");
  const auto entry = kernel_of(device, "gather", columns, DType::f32);
  for (const auto slice : gpu::binding_slices(device, rows, {row_bytes(op.part.logits), 4 * sizeof(float)})) {
    const auto part = [&](const Tensor& tensor) { return tensor.rows(slice.begin, slice.end); };
    const std::uint32_t count = slice.end - slice.begin;
    recorder.dispatch(entry,
                      {gpu::read_write(part(op.part.logits)), gpu::read(part(op.labels)), gpu::read_write(part(op.stats)),
                       gpu::read_write(part(op.loss)), gpu::read_write(part(op.correct))},
                      CrossEntropyPartParams{count, columns, op.part.first, op.begins ? 1u : 0u, op.ends ? 1u : 0u, 1.0f, 0u, 0.0f},
                      gpu::linear_grid(device, count),
                      {.bytes = double(count) * double(row_bytes(op.part.logits)), .flops = 4.0 * count * columns});
  }
}

void record(gpu::Recorder& recorder, const CrossEntropySlopes& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.part.logits.dim(0), columns = op.part.logits.dim(1);
  check_shapes(op.part, op.labels, op.stats);
  if (op.weights) expect_shape(op.weights, DType::f32, {rows}, in_cross_entropy_part, "weights");
  check(op.focal_gamma >= 0, in_cross_entropy_part, "The focal gamma is {}; it is at least 0.", op.focal_gamma);
  expect_shape(op.d_logits, rows, columns, in_cross_entropy_part, "d_logits");
  const bool scaled = is_scaled(op.d_logits);
  const bool in_place = op.d_logits.data.buffer() == op.part.logits.buffer() && op.d_logits.data.offset() == op.part.logits.offset();
  check(scaled != in_place, in_cross_entropy_part, "A gradient in f32 takes the logits' own place, and one in f16 another.");
  const auto entry = kernel_of(device, scaled ? "scaled_slopes" : "slopes", columns, scaled ? DType::f16 : DType::f32);
  for (const auto slice : gpu::binding_slices(device, rows, {row_bytes(op.part.logits), row_bytes(op.part.logits) / 2, 4 * sizeof(float)})) {
    const auto part = [&](const Tensor& tensor) { return tensor.rows(slice.begin, slice.end); };
    const std::uint32_t count = slice.end - slice.begin;
    const CrossEntropyPartParams params{count, columns, op.part.first, 0, 0, op.factor, op.weights ? 1u : 0u, op.focal_gamma};
    const auto logits = gpu::read_write(part(op.part.logits)), stats = gpu::read_write(part(op.stats));
    // Without weights something has to be bound that nothing reads.
    const auto labels = gpu::read(part(op.labels)), weights = gpu::read(part(op.weights ? op.weights : op.labels));
    const gpu::Work work{.bytes = double(count) * double(row_bytes(op.part.logits) + data_row_bytes(op.d_logits)), .flops = 3.0 * count * columns};
    const auto grid = gpu::linear_grid(device, count);
    if (scaled) {
      recorder.dispatch(entry, {logits, labels, stats, weights, gpu::write(part(op.d_logits.data)), gpu::write(part(op.d_logits.scale))},
                        params, grid, work);
    } else {
      recorder.dispatch(entry, {logits, labels, stats, weights}, params, grid, work);
    }
  }
}

}  // namespace nibble
