#include "nibble/kernels/lora_rows_sum.h"

namespace nibble {
namespace {

constexpr std::uint32_t row_vector = 8;         // elements of h that some invocations add up
constexpr std::uint32_t vectors_at_once = 32;  // of a workgroup

struct RowsSumParams {
  std::array<std::uint32_t, 4> starts;
  std::uint32_t count, row_vectors, width, padded_width, padded_rows;
  float factor;
  std::array<std::uint32_t, 2> padding;
};

}  // namespace

void record(gpu::Recorder& recorder, const LoraRowsSum& op) {
  auto& device = recorder.device();
  const RowsSumParams params{.starts = op.starts,
                             .count = static_cast<std::uint32_t>(op.h.size() / row_vector),
                             .row_vectors = op.h.dim(1) / row_vector,
                             .width = op.width,
                             .padded_width = op.padded_width,
                             .padded_rows = op.padded_rows,
                             .factor = op.factor,
                             .padding = {}};
  // A processor gains nothing from sharing; two there, so that tests see it.
  const std::uint32_t shares = device.info().type == gpu::AdapterType::software ? 2 : 8;
  recorder.dispatch(kernel(device, "lora_rows_sum", gpu::Prelude().enable("f16").constant("SHARES", shares), {"grid"}),
                    {gpu::read(op.partial), gpu::write(op.h)}, params,
                    gpu::linear_grid(device, (params.count + vectors_at_once - 1) / vectors_at_once),
                    {.bytes = static_cast<double>(op.partial.bytes() + op.h.bytes())});
}

}  // namespace nibble
