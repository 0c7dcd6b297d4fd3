#include "nibble/kernels/product.h"

#include "nibble/base/error.h"
#include "nibble/kernels/product_matrix.h"
#include "nibble/kernels/product_tiled.h"
#include "nibble/kernels/product_vec.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>

namespace nibble {
namespace {

template <typename Product>
void check_product(std::string_view where, const Product& op, std::uint32_t x_columns, std::uint32_t y_columns) {
  const DType dtype = operand_dtype(op.path), y_dtype = op.y_scale ? DType::f16 : DType::f32;
  const Tensor &x = op.x.data, &w = op.w.data, &y = op.y;
  check(x.dtype() == dtype && w.dtype() == (op.w.absmax ? DType::u32 : dtype) && y.dtype() == y_dtype, where,
        "The path takes {} and gives {}, not x of {}, w of {} and y of {}.", name_of(dtype), name_of(y_dtype),
        name_of(x.dtype()), name_of(w.dtype()), name_of(y.dtype()));
  check(x.dim(1) == x_columns && y.dim(1) == y_columns && x.dim(0) == y.dim(0), where,
        "Shapes do not fit: x {}, w {}, y {}.", x.shape_text(), w.shape_text(), y.shape_text());
  const bool scaled = static_cast<bool>(op.x.scale);
  check(scaled == (dtype == DType::f16), where, "x {} row scales; it has them in f16 alone.", scaled ? "has" : "lacks");
}

// f16 outputs, a base to add to, and LoRA's tail.
template <typename Product>
void check_extras(gpu::Recorder& recorder, std::string_view where, const Product& op) {
  const std::uint32_t outputs = op.w.data.dim(0), inputs = op.w.inputs(), rows = op.x.data.dim(0);
  if (op.y_scale) {
    check<UsageError>(f16_outputs_fit(recorder.device(), op.path, outputs, inputs), where,
                      "The path has no f16 outputs for a weight of ({}, {}).", outputs, inputs);
    check<UsageError>(!op.accumulate && !op.plus, where, "Outputs in f16 are written, not added to others.");
    check(op.y_scale.dtype() == DType::f32 && op.y_scale.size() == rows, where, "y_scale {} is not f32 of {} rows.",
          op.y_scale.shape_text(), rows);
  }
  if (op.plus) {
    check<UsageError>(!op.accumulate, where, "y cannot be added both to itself and to another tensor.");
    check(op.plus.dtype() == DType::f32 && op.plus.rank() == 2 && op.plus.dim(0) == op.y.dim(0) && op.plus.dim(1) == op.y.dim(1),
          where, "plus {} is not f32 of y's shape {}.", op.plus.shape_text(), op.y.shape_text());
  }
}

template <typename Product>
void check_tail(gpu::Recorder& recorder, std::string_view where, const Product& op) {
  constexpr bool nt = std::is_same_v<Product, ProductNT>;
  const std::uint32_t outputs = op.w.data.dim(0), inputs = op.w.inputs();
  const Tensor &left = op.lora.left, &right = op.lora.right;
  const auto ends = nt ? std::span<const std::uint32_t>(op.lora.ends) : std::span<const std::uint32_t>();
  check<UsageError>(op.path == ProductPath::matrix && lora_tail_fits(recorder.device(), outputs, inputs, ends), where,
                    "The path has no LoRA tail for a weight of ({}, {}) with projections to {}.", outputs, inputs,
                    fmt::join(op.lora.ends, ", "));
  check(left.dtype() == DType::f16 && right.dtype() == DType::f16 && left.dim(0) == op.x.data.dim(0), where,
        "LoRA's left {} and right {} must be f16, left of x's {} rows.", left.shape_text(), right.shape_text(), op.x.data.dim(0));
  const std::uint32_t rank = nt ? right.dim(1) : right.dim(0), width = left.dim(1);
  const auto projections = static_cast<std::uint32_t>(std::count_if(ends.begin(), ends.end(), [&](auto e) { return e < outputs; })) + 1;
  const bool fits = nt ? right.dim(0) == outputs && rank <= most_tail_rank && width == projections * rank
                       : right.dim(1) == inputs && rank <= 3 * most_tail_rank && width == rank;
  check(fits && rank > 0 && rank % 16 == 0, where,
        "LoRA's left {} and right {} do not fit a weight {}; ranks are multiples of 16 up to {}.", left.shape_text(),
        right.shape_text(), op.w.data.shape_text(), most_tail_rank);
}

template <typename Product>
void check_all(gpu::Recorder& recorder, std::string_view where, const Product& op, std::uint32_t x_columns, std::uint32_t y_columns) {
  check_product(where, op, x_columns, y_columns);
  check_extras(recorder, where, op);
  if (op.lora.left || op.lora.right) check_tail(recorder, where, op);
}

void check_codes(gpu::Recorder& recorder, const ProductNT& op) {
  check(op.path == ProductPath::matrix && matrix_fits(recorder.device(), op.w.data.dim(0), op.w.inputs()), "product_nt", "Weights in NF4 are for matrix units.");
  check(op.w.inputs() % nf4_block == 0, "product_nt", "A weight in NF4 has rows of {}; they must be whole blocks of {}.", op.w.inputs(), nf4_block);
  expect_shape(op.w.absmax, DType::f32, {op.w.data.dim(0), op.w.inputs() / nf4_block}, "product_nt", "absmax");
}

// Where the sizes do not suit the adapter's matrices, f16 vectors do the work.
template <typename Product>
bool by_matrices(gpu::Recorder& recorder, const Product& op) {
  return op.path == ProductPath::matrix && matrix_fits(recorder.device(), op.w.data.dim(0), op.w.inputs());
}

// A GPU reads a weight for a few rows faster when neighbours read neighbouring elements.
bool by_vectors(gpu::Recorder& recorder, const ProductNT& op) {
  return recorder.device().info().type != gpu::AdapterType::software && op.x.data.dim(0) > 0 &&
         op.x.data.dim(0) <= vec_rows && op.w.data.dim(1) % 8 == 0 && op.w.tile == 0 && !op.w.absmax && !op.y_scale && !op.lora.left;
}

template <typename Product>
MatrixProduct matrix_product(const Product& op) {
  return {.x = op.x, .w = op.w, .y = op.y, .y_scale = op.y_scale, .plus = op.plus, .accumulate = op.accumulate, .lora = op.lora,
          .scratch = op.scratch, .plan_rows = op.plan_rows};
}

// The other kernels add to what y holds.
template <typename Product>
bool accumulate_on(gpu::Recorder& recorder, const Product& op) {
  if (op.plus) recorder.copy(op.plus, op.y);
  return op.accumulate || op.plus;
}

template <typename Product>
TiledProduct tiled_product(gpu::Recorder& recorder, const Product& op) {
  check(op.w.tile == 0, "product", "The weight {} lies in tiles, which matrix units alone read.", op.w.data.shape_text());
  return {.x = op.x, .w = {op.w.data, {}}, .y = op.y, .scale = op.w.scale, .accumulate = accumulate_on(recorder, op)};
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
  check_all(recorder, "product_nt", op, op.w.inputs(), op.w.data.dim(0));
  if (op.w.absmax) check_codes(recorder, op);
  if (by_vectors(recorder, op)) {
    record(recorder, DenseVec{.x = op.x, .w = op.w, .y = op.y, .accumulate = accumulate_on(recorder, op)});
  } else if (by_matrices(recorder, op)) {
    record_matrix_nt(recorder, matrix_product(op));
  } else {
    record_nt(recorder, tiled_product(recorder, op));
  }
}

void record(gpu::Recorder& recorder, const ProductNN& op) {
  check(!op.w.absmax, "product_nn", "A weight in NF4 came, which NT alone reads.");
  check_all(recorder, "product_nn", op, op.w.data.dim(0), op.w.data.dim(1));
  if (by_matrices(recorder, op)) {
    MatrixProduct product = matrix_product(op);
    product.sums = op.sums;
    record_matrix_nn(recorder, product);
  } else {
    record_nn(recorder, tiled_product(recorder, op));
  }
}

std::uint64_t product_scratch(const gpu::Device& device, ProductPath path, std::uint32_t rows, std::uint32_t outputs, std::uint32_t inputs,
                              bool tiled) {
  if (path != ProductPath::matrix || !matrix_fits(device, outputs, inputs)) return 0;
  std::uint64_t most = 0;
  const MatrixShape nt{MatrixLayout::nt, rows, outputs, inputs}, nn{MatrixLayout::nn, rows, inputs, outputs};
  std::vector<std::pair<MatrixShape, MatrixPlan>> plans{{nt, matrix_plan(device, nt, tiled)}, {nn, matrix_plan(device, nn, tiled)}};
  if (rows <= most_decoding_rows) plans.emplace_back(nt, decoding_plan(device.info(), nt));
  for (const auto& [shape, plan] : plans) {
    if (plan.splits == 1) continue;
    // Fewer rows than these may leave more blocks beyond whole waves, but never a wave.
    const std::uint32_t blocks = blocks_of(plan, rows, shape.columns).count();
    const std::uint64_t beyond = plan.wave == 0 ? blocks : std::min(blocks, plan.wave - 1);
    most = std::max(most, plan.splits * beyond * plan.tile.block_m * plan.tile.block_n);
  }
  return std::min<std::uint64_t>(most, device.info().limits.max_binding / sizeof(float) - 4);
}

void record(gpu::Recorder& recorder, const ProductTN& op) {
  record_tn(recorder, {.x = op.x, .w = op.w, .y = op.y, .scratch = op.scratch});
}

std::uint64_t product_tn_scratch(const gpu::Device& device, std::uint32_t rows, std::uint32_t outputs, std::uint32_t inputs) {
  return tn_scratch_size(device.info().type, rows, outputs, inputs);
}

}  // namespace nibble
