#include "nibble/kernels/product.h"

#include "nibble/base/error.h"
#include "nibble/kernels/product_matrix.h"
#include "nibble/kernels/product_tiled.h"
#include "nibble/kernels/product_vec.h"

namespace nibble {
namespace {

template <typename Product>
void check_product(std::string_view where, const Product& op, std::uint32_t x_columns, std::uint32_t y_columns) {
  const DType dtype = operand_dtype(op.path);
  const Tensor &x = op.x.data, &w = op.w.data, &y = op.y;
  check(x.dtype() == dtype && w.dtype() == dtype && y.dtype() == DType::f32, where,
        "The path takes {} and gives f32, not x of {}, w of {} and y of {}.", name_of(dtype), name_of(x.dtype()),
        name_of(w.dtype()), name_of(y.dtype()));
  check(x.dim(1) == x_columns && y.dim(1) == y_columns && x.dim(0) == y.dim(0), where,
        "Shapes do not fit: x {}, w {}, y {}.", x.shape_text(), w.shape_text(), y.shape_text());
  const bool scaled = static_cast<bool>(op.x.scale);
  check(scaled == (dtype == DType::f16), where, "x {} row scales; it has them in f16 alone.", scaled ? "has" : "lacks");
}

// Where the sizes do not suit the adapter's matrices, f16 vectors do the work.
template <typename Product>
bool by_matrices(gpu::Recorder& recorder, const Product& op) {
  return op.path == ProductPath::matrix && matrix_fits(recorder.device(), op.w.data.dim(0), op.w.data.dim(1));
}

// A GPU reads a weight for a few rows faster when neighbours read neighbouring elements.
bool by_vectors(gpu::Recorder& recorder, const ProductNT& op) {
  return recorder.device().info().type != gpu::AdapterType::software && op.x.data.dim(0) > 0 &&
         op.x.data.dim(0) <= vec_rows && op.w.data.dim(1) % 8 == 0;
}

template <typename Product>
MatrixProduct matrix_product(const Product& op) {
  return {.x = op.x, .w = op.w, .y = op.y, .accumulate = op.accumulate};
}

template <typename Product>
TiledProduct tiled_product(const Product& op) {
  return {.x = op.x, .w = {op.w.data, {}}, .y = op.y, .scale = op.w.scale, .accumulate = op.accumulate};
}

}  // namespace

bool supports(const gpu::AdapterInfo& info, ProductPath path) {
  switch (path) {
    case ProductPath::matrix: return info.f16 && info.subgroups && default_matrix_tile(info);
    case ProductPath::f16: return info.f16;
    case ProductPath::f32: return true;
  }
  return false;
}

ProductPath fastest_path(const gpu::AdapterInfo& info) {
  if (info.type == gpu::AdapterType::software) return ProductPath::f32;
  for (const ProductPath path : {ProductPath::matrix, ProductPath::f16}) {
    if (supports(info, path)) return path;
  }
  return ProductPath::f32;
}

void record(gpu::Recorder& recorder, const ProductNT& op) {
  check_product("product_nt", op, op.w.data.dim(1), op.w.data.dim(0));
  if (by_vectors(recorder, op)) {
    record(recorder, DenseVec{.x = op.x, .w = op.w, .y = op.y, .accumulate = op.accumulate});
  } else if (by_matrices(recorder, op)) {
    record_matrix_nt(recorder, matrix_product(op));
  } else {
    record_nt(recorder, tiled_product(op));
  }
}

void record(gpu::Recorder& recorder, const ProductNN& op) {
  check_product("product_nn", op, op.w.data.dim(0), op.w.data.dim(1));
  if (by_matrices(recorder, op)) {
    record_matrix_nn(recorder, matrix_product(op));
  } else {
    record_nn(recorder, tiled_product(op));
  }
}

void record(gpu::Recorder& recorder, const ProductTN& op) {
  record_tn(recorder, {.x = op.x, .w = op.w, .y = op.y, .scratch = op.scratch});
}

std::uint64_t product_tn_scratch(const gpu::Device& device, std::uint32_t rows, std::uint32_t outputs, std::uint32_t inputs) {
  return tn_scratch_size(device.info().type, rows, outputs, inputs);
}

}  // namespace nibble
