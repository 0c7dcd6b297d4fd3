#include "nibble/kernels/preference.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

// Lanes that sum an answer's labels.
constexpr std::uint32_t labels_of_an_answer = 256;

struct PreferenceParams {
  std::uint32_t pairs;
  float beta, pair_factor, token_factor;
  std::uint32_t has_reference;
};

struct TotalParams {
  std::uint32_t rows, accumulate;
};

void check_shapes(const Preference& op, std::uint32_t pairs) {
  const std::uint32_t labels = op.loss.dim(0);
  expect_shape(op.loss, DType::f32, {labels}, "preference", "loss");
  expect_shape(op.sides, DType::u32, {2 * pairs + 1}, "preference", "sides");
  expect_shape(op.statistics, DType::f32, {pairs, preference_statistics}, "preference", "statistics");
  if (op.reference) expect_shape(op.reference, DType::f32, {2 * pairs}, "preference", "reference");
  if (op.weights) expect_shape(op.weights, DType::f32, {labels}, "preference", "weights");
}

}  // namespace

std::string_view name_of(PreferenceLoss loss) { return loss == PreferenceLoss::dpo ? "dpo" : "orpo"; }

void record(gpu::Recorder& recorder, const Preference& op) {
  auto& device = recorder.device();
  const std::uint32_t pairs = op.statistics.dim(0);
  check_shapes(op, pairs);
  gpu::Prelude prelude = RowKernel(device, labels_of_an_answer).prelude(DType::f32);
  prelude.constant("ORPO", op.kind == PreferenceLoss::orpo);
  const auto entry = kernel(device, "preference", prelude, {"grid", "row_reduce", "block_sum"},
                            op.weights ? "statistics_and_weights" : "statistics_only");
  const PreferenceParams params{pairs, op.beta, op.pair_factor, op.token_factor, op.reference ? 1u : 0u};
  const auto loss = gpu::read(op.loss), sides = gpu::read(op.sides);
  // Without a reference something has to be bound that nothing reads.
  const auto reference = gpu::read(op.reference ? op.reference : op.sides);
  const auto statistics = gpu::write(op.statistics);
  const auto grid = gpu::linear_grid(device, pairs);
  const gpu::Work work{.bytes = 4.0 * op.loss.dim(0) * (op.weights ? 2 : 1), .flops = 1.0 * op.loss.dim(0)};
  if (op.weights) {
    recorder.dispatch(entry, {loss, sides, reference, statistics, gpu::write(op.weights)}, params, grid, work);
  } else {
    recorder.dispatch(entry, {loss, sides, reference, statistics}, params, grid, work);
  }
}

void record(gpu::Recorder& recorder, const PreferenceTotal& op) {
  const std::uint32_t rows = op.statistics.dim(0);
  expect_shape(op.statistics, DType::f32, {rows, preference_statistics}, "preference", "statistics");
  expect_shape(op.total, DType::f32, {preference_statistics}, "preference", "total");
  gpu::Prelude prelude;
  prelude.constant("COLUMNS", preference_statistics);
  recorder.dispatch(kernel(recorder.device(), "preference_total", prelude),
                    {gpu::read(op.statistics), gpu::read_write(op.total)}, TotalParams{rows, op.accumulate ? 1u : 0u}, {},
                    {.bytes = double(op.statistics.bytes())});
}

}  // namespace nibble
