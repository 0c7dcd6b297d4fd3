#include "nibble/kernels/lora_rows_sum.h"

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr std::uint32_t row_vector = 8;         // elements of h that some invocations add up
constexpr std::uint32_t vectors_at_once = 32;  // of a workgroup

struct RowsSumParams {
  detail::LoraRowsSumParams rows;
};

}  // namespace

namespace detail {

LoraRowsSumParams add_rows_sum(const LoraRowsSum& op, std::uint32_t invocations, std::vector<gpu::Binding>& bindings, gpu::Prelude& prelude) {
  check(op.h && op.h.dtype() == DType::f16 && op.h.dim(1) % row_vector == 0 && op.width > 0, "lora_rows_sum", "Rows are f16, in vectors of {}.", row_vector);
  check(op.partial && op.partial.dtype() == DType::f32 && op.partial.size() >= std::uint64_t{op.starts.back()} * op.padded_rows * op.padded_width,
        "lora_rows_sum", "{} parts of {} x {} do not lie in {} elements.", op.starts.back(), op.padded_rows, op.padded_width,
        op.partial ? op.partial.size() : 0);
  const auto sums_at = static_cast<std::uint32_t>(bindings.size() + 1);
  bindings.push_back(gpu::read(op.partial));
  bindings.push_back(gpu::write(op.h));
  prelude.constant("SUMS_AT", sums_at).constant("H_AT", sums_at + 1).constant("SHARES", invocations / vectors_at_once);
  const auto count = static_cast<std::uint32_t>(op.h.size() / row_vector);
  return {.starts = op.starts,
          .count = count,
          .row_vectors = op.h.dim(1) / row_vector,
          .width = op.width,
          .padded_width = op.padded_width,
          .padded_rows = op.padded_rows,
          .factor = op.factor,
          .groups = (count + vectors_at_once - 1) / vectors_at_once};
}

double rows_sum_bytes(const LoraRowsSum& op) { return static_cast<double>(op.partial.bytes() + op.h.bytes()); }

}  // namespace detail

void record(gpu::Recorder& recorder, const LoraRowsSum& op) {
  auto& device = recorder.device();
  // A processor gains nothing from sharing; two there, so that tests see it.
  const std::uint32_t invocations = vectors_at_once * (device.info().type == gpu::AdapterType::software ? 2 : 8);
  std::vector<gpu::Binding> bindings;
  gpu::Prelude prelude;
  prelude.enable("f16").constant("PARTS_AT_ONCE", 4u);
  const RowsSumParams params{detail::add_rows_sum(op, invocations, bindings, prelude)};
  recorder.dispatch_bytes(kernel(device, "lora_rows_sum", prelude, {"grid", "lora_rows_sum_params", "lora_rows_sum"}), bindings,
                          std::as_bytes(std::span(&params, 1)), gpu::linear_grid(device, params.rows.groups), {.bytes = detail::rows_sum_bytes(op)});
}

}  // namespace nibble
