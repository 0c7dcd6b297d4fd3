#include "nibble/kernels/lora_matrix.h"

#include "nibble/base/error.h"
#include "nibble/kernels/lora_matrix_parts.h"

#include <algorithm>

namespace nibble {
namespace detail {

float keep_scale(const LoraGroupDropout& dropout) { return static_cast<float>(1 / (1 - double{dropout.probability})); }

gpu::Kernel lora_kernel(gpu::Device& device, const LoraPlan& plan) {
  constexpr std::array labels{"lora_matrix:down", "lora_matrix:up_backward", "lora_matrix:gradients",
                              "lora_matrix:backward"};
  const LoraText& text = plan.text;
  const char* label = labels.at(static_cast<std::size_t>(text.pass));
  const auto key = fmt::format("{} {} {} {}", label, text.narrow, text.whole_steps, text.dropout);
  return device.kernel(key, label, "main", [&] { return lora_matrix_text(plan.tile, text, embedded_wgsl().at("lib/random")); });
}

gpu::Work lora_work(const LoraPlan& plan, const LoraProblem& problem) {
  double columns = 0;
  for (const auto& [begin, end] : problem.ranges) columns += (end - begin) * double{lora_lane};
  return {.bytes = plan.params.rows * columns * 2 + static_cast<double>(plan.scratch) * 4,
          .flops = (plan.text.pass == LoraPass::backward ? 4.0 : 2.0) * plan.params.rows * columns * plan.params.width};
}

std::vector<gpu::RowRange> lora_row_slices(const gpu::Device& device, const LoraGroupShape& shape, std::uint32_t rows, std::uint32_t columns) {
  // Partial sums are f32, in rows padded to 64 at most.
  return gpu::binding_slices(device, rows, {std::uint64_t{columns} * 2, (shape.width() + 64u) * std::uint64_t{8}, 4});
}

Tensor scratch_part(const Tensor& scratch, std::uint64_t first, std::uint64_t elements) {
  check(scratch && scratch.dtype() == DType::f32 && scratch.size() >= first + elements, "lora_matrix",
        "The scratch of {} elements is smaller than the {} needed.", scratch ? scratch.size() : 0, first + elements);
  return scratch.part(first, {static_cast<std::uint32_t>(elements)});
}

void check_lora_rows(const LoraGroup& group, const Tensor& x, std::uint32_t columns, const Tensor& h) {
  check(x.dtype() == DType::f16 && h.dtype() == DType::f16 && x.dim(1) == columns && h.dim(1) == group.shape.width() &&
            h.dim(0) == x.dim(0),
        "lora_matrix", "Shapes do not fit: {} rows of {} columns and h {} for rank {}.", x.shape_text(), columns,
        h.shape_text(), group.shape.rank);
}

LoraRowsSum rows_sum_of(const LoraPlan& plan, const Tensor& partial, std::uint32_t padded_rows, std::uint32_t parts, const Tensor& h, float factor) {
  const auto& segments = plan.params.segments;
  return {.partial = partial,
          .h = h,
          .starts = {0, segments[1][2], segments[2][2], parts},
          .width = plan.params.width,
          .padded_width = plan.params.narrow_blocks * plan.text.narrow,
          .padded_rows = padded_rows,
          .factor = factor};
}

LoraRowsSum record_rows(gpu::Recorder& recorder, const LoraGroupShape& shape, const LoraRows& op) {
  auto& device = recorder.device();
  LoraRowsSum sum;
  for (const auto range : lora_row_slices(device, shape, op.x.dim(0), op.x.dim(1))) {
    LoraPlan plan = lora_plan(device, op.problem, range.end - range.begin);
    set_dropout(plan, op.dropout, range.begin);
    LoraParams& p = plan.params;
    p.x_stride = op.x.dim(1) / lora_lane;
    p.w_stride = op.w.dim(1) / lora_lane;
    if (sum.h) record(recorder, sum);
    const Tensor h = op.h.rows(range.begin, range.end);
    const Tensor partial = scratch_part(op.scratch, 0, std::max<std::uint64_t>(plan.scratch, 4));
    if (p.parts > 0) {
      recorder.dispatch(lora_kernel(device, plan),
                        {gpu::read(op.x.rows(range.begin, range.end)), gpu::read(op.w), gpu::write(partial)}, p,
                        gpu::linear_grid(device, plan.workgroups()), lora_work(plan, op.problem));
    }
    sum = rows_sum_of(plan, partial, p.blocks * plan.tile.block, p.parts, h, lora_hidden_unit * keep_scale(op.dropout));
  }
  return sum;
}

}  // namespace detail

void record(gpu::Recorder& recorder, const LoraDownMatrix& op) { record(recorder, record_parts(recorder, op)); }

LoraRowsSum record_parts(gpu::Recorder& recorder, const LoraDownMatrix& op) {
  const LoraGroupShape& shape = op.group.shape;
  detail::check_lora_rows(op.group, op.x, shape.inputs, op.h);
  return detail::record_rows(recorder, shape,
                             {detail::lora_down_problem(shape, op.dropout.probability > 0), op.x, op.group.a, op.h, op.scratch, op.dropout});
}

bool lora_matrix_fits(const gpu::Device& device, const LoraGroupShape& shape) {
  const auto multiple = [](std::uint32_t count) { return count % detail::lora_lane == 0; };
  return multiple(shape.inputs) && std::all_of(shape.outputs.begin(), shape.outputs.end(), multiple) &&
         shape.rank > 0 && detail::lora_tile(device.info(), detail::LoraPass::gradients).has_value();
}

}  // namespace nibble
