#include "nibble/kernels/product.h"

#include "nibble/base/error.h"
#include "nibble/kernels/product_tiled.h"

namespace nibble {
namespace {

void check_operands(std::string_view where, ProductPath path, const Operand& x, const Weight& w) {
  const DType dtype = operand_dtype(path);
  check(x.data.dtype() == dtype && w.data.dtype() == dtype, where, "The path takes {}, not x of {} and w of {}.",
        name_of(dtype), name_of(x.data.dtype()), name_of(w.data.dtype()));
  check(static_cast<bool>(x.scale) == (dtype == DType::f16), where, "An operand has row scales in f16 and none in f32.");
}

}  // namespace

void record(gpu::Recorder& recorder, const ProductNT& op) {
  check_operands("product_nt", op.path, op.x, op.w);
  record_nt(recorder, {.x = op.x, .w = {op.w.data, {}}, .y = op.y, .scale = op.w.scale, .accumulate = op.accumulate});
}

void record(gpu::Recorder& recorder, const ProductNN& op) {
  check_operands("product_nn", op.path, op.x, op.w);
  record_nn(recorder, {.x = op.x, .w = {op.w.data, {}}, .y = op.y, .scale = op.w.scale, .accumulate = op.accumulate});
}

void record(gpu::Recorder& recorder, const ProductTN& op) {
  record_tn(recorder, {.x = op.x, .w = op.w, .y = op.y, .scratch = op.scratch});
}

std::uint64_t product_tn_scratch(const gpu::Device& device, std::uint32_t rows, std::uint32_t outputs, std::uint32_t inputs) {
  return tn_scratch_size(device, rows, outputs, inputs);
}

}  // namespace nibble
