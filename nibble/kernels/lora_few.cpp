#include "nibble/kernels/lora_few.h"

#include "nibble/base/error.h"
#include "nibble/kernels/lora_matrix_parts.h"

namespace nibble {

void record(gpu::Recorder& recorder, const LoraDownFew& op) {
  constexpr std::uint32_t rows_at_once = 8, columns_at_once = 4;
  const LoraGroupShape& shape = op.group.shape;
  detail::check_lora_rows(op.group, op.x, shape.inputs, op.h);
  const std::uint32_t rows = op.x.dim(0), columns = shape.width(), vectors = shape.inputs / detail::lora_lane;
  struct Params {
    std::uint32_t rows, columns, vectors;
    float factor;
  };
  gpu::Device& device = recorder.device();
  gpu::Prelude prelude;
  prelude.enable("f16").enable("subgroups").constant("WORKGROUP", 256u).constant("MOST_SUBGROUPS", 256 / device.info().subgroup_min_size);
  prelude.constant("ROWS", rows_at_once).constant("COLUMNS", columns_at_once);
  const double all = rows, width = columns, inputs = shape.inputs;
  recorder.dispatch(kernel(device, "lora_few", prelude, {"eight_f16"}), {gpu::read(op.x), gpu::read(op.group.a), gpu::write(op.h)},
                    Params{rows, columns, vectors, detail::lora_hidden_unit}, {columns / columns_at_once, (rows + rows_at_once - 1) / rows_at_once},
                    {.bytes = 2 * (all * inputs + width * inputs + all * width), .flops = 2 * all * width * inputs});
}

}  // namespace nibble
