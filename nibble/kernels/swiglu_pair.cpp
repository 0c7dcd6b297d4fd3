#include "nibble/kernels/swiglu_pair.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

constexpr std::uint32_t pair_width = 8;  // values of an invocation

struct SwigluPairParams {
  std::uint32_t rows, row_vectors;  // of h
};

gpu::Kernel pair_kernel(gpu::Device& device, std::string_view entry, std::uint32_t columns, std::uint32_t h_at) {
  // A lane takes twice what those of other row kernels take.
  const RowKernel rows(device, columns / 2);
  const gpu::Prelude prelude = rows.prelude(DType::f16).constant("KEPT", rows.kept(columns / pair_width, 6)).constant("H_AT", h_at);
  return kernel(device, "swiglu_pair", prelude, {"grid", "row_reduce", "row_scale", "eight_f16", "wide4", "sigmoid"}, entry);
}

std::uint32_t check_shapes(std::string_view where, const Operand& wide, std::string_view wide_name, const Operand& narrow,
                           std::string_view narrow_name) {
  const std::uint32_t rows = wide.data.dim(0), columns = wide.data.dim(1) / 2;
  check(columns % pair_width == 0 && is_scaled(wide) && is_scaled(narrow), where,
        "{} columns came in f32 or not in a multiple of {}.", columns, pair_width);
  expect_shape(wide, rows, 2 * columns, where, wide_name);
  expect_shape(narrow, rows, columns, where, narrow_name);
  return columns;
}

}  // namespace

void record(gpu::Recorder& recorder, const SwiGluPair& op) {
  auto& device = recorder.device();
  const std::uint32_t columns = check_shapes("swiglu", op.gate_up, "gate_up", op.h, "h");
  const auto forward = pair_kernel(device, "forward", columns, 3);
  for (const auto slice : gpu::binding_slices(device, op.h.data.dim(0), {data_row_bytes(op.gate_up), sizeof(float)})) {
    const Operand gate_up = operand_rows(op.gate_up, slice), h = operand_rows(op.h, slice);
    const std::uint32_t rows = slice.end - slice.begin;
    const SwigluPairParams params{.rows = rows, .row_vectors = columns / pair_width};
    recorder.dispatch(forward, {gpu::read(gate_up.data), gpu::read(gate_up.scale), gpu::write(h.data), gpu::write(h.scale)},
                      params, gpu::linear_grid(device, rows), {.bytes = 6.0 * rows * columns, .flops = 5.0 * rows * columns});
  }
}

void record(gpu::Recorder& recorder, const SwiGluPairBackward& op) {
  auto& device = recorder.device();
  const std::uint32_t columns = check_shapes("swiglu backward", op.gate_up, "gate_up", op.dh, "dh");
  check_shapes("swiglu backward", op.d_gate_up, "d_gate_up", op.dh, "dh");
  const bool and_h = static_cast<bool>(op.h.data);
  if (and_h) check_shapes("swiglu backward", op.gate_up, "gate_up", op.h, "h");
  const auto backward = pair_kernel(device, and_h ? "backward_and_h" : "backward", columns, 7);
  for (const auto slice : gpu::binding_slices(device, op.dh.data.dim(0), {data_row_bytes(op.gate_up), sizeof(float)})) {
    const Operand gate_up = operand_rows(op.gate_up, slice), dh = operand_rows(op.dh, slice);
    const Operand d_gate_up = operand_rows(op.d_gate_up, slice);
    const std::uint32_t rows = slice.end - slice.begin;
    const SwigluPairParams params{.rows = rows, .row_vectors = columns / pair_width};
    std::vector<gpu::Binding> bindings{gpu::read(gate_up.data),     gpu::read(gate_up.scale), gpu::write(d_gate_up.data),
                                       gpu::write(d_gate_up.scale), gpu::read(dh.data),       gpu::read(dh.scale)};
    if (and_h) {
      const Operand h = operand_rows(op.h, slice);
      bindings.insert(bindings.end(), {gpu::write(h.data), gpu::write(h.scale)});
    }
    recorder.dispatch_bytes(backward, bindings, std::as_bytes(std::span(&params, 1)), gpu::linear_grid(device, rows),
                            {.bytes = (and_h ? 12.0 : 10.0) * rows * columns, .flops = 10.0 * rows * columns});
  }
}

}  // namespace nibble
