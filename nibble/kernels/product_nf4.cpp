#include "nibble/kernels/product_nf4.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"

#include <algorithm>
#include <bit>

namespace nibble {
namespace {

struct ProductNf4Params {
  std::uint32_t rows, outputs, inputs, rank;
  float scaling;
  std::uint32_t wall;
};

constexpr std::uint32_t subgroup_lanes = 8, tile_n = 8, most_tile_m = 16, tile_columns = subgroup_lanes * tile_n;

void check_shapes(std::string_view where, const gpu::Device& device, const Nf4Product& op, std::uint32_t outputs,
                  std::uint32_t inputs) {
  const std::uint64_t elements = std::uint64_t{outputs} * inputs;
  check(op.x.dtype() == DType::f32 && op.y.dtype() == DType::f32 && op.x.dim(0) == op.y.dim(0) &&
            op.w.packed.bytes() * 2 == elements && op.w.absmax.size() * nf4_block == elements && nf4_product_fits(device, outputs, inputs),
        where, "Shapes do not fit: x {}, y {}, a weight ({}, {}) of {} packed bytes and {} block maxima.", op.x.shape_text(),
        op.y.shape_text(), outputs, inputs, op.w.packed.bytes(), op.w.absmax.size());
}

void check_term(std::string_view where, const Nf4Product& op, bool turned) {
  const std::uint32_t rank = op.left.dim(1), width = op.y.dim(1);
  check(op.left.dtype() == DType::f32 && op.right.dtype() == DType::f32 && op.left.dim(0) == op.y.dim(0) && rank % 4 == 0 &&
            op.right.dim(turned ? 0 : 1) == rank && op.right.dim(turned ? 1 : 0) == width,
        where, "The low-rank term's left {} and right {} do not fit y {}; the rank is a multiple of 4.", op.left.shape_text(),
        op.right.shape_text(), op.y.shape_text());
}

void record_product(gpu::Recorder& recorder, const Nf4Product& op, bool turned) {
  auto& device = recorder.device();
  const std::string_view where = turned ? "product_nf4_nn" : "product_nf4_nt";
  const std::uint32_t rows = op.x.dim(0), inner = op.x.dim(1), width = op.y.dim(1);
  check_shapes(where, device, op, turned ? inner : width, turned ? width : inner);
  if (op.left) check_term(where, op, turned);
  const std::uint32_t rank = op.left ? op.left.dim(1) : 0;
  const std::uint32_t tile_m = std::min(most_tile_m, std::bit_ceil(std::max(rows, 1u)));
  gpu::Prelude prelude;
  prelude.enable("subgroups").constant("TURNED", turned).constant("ACCUMULATE", op.accumulate);
  prelude.constant("TILE_M", tile_m).constant("TILE_N", tile_n).text(nf4_codes_text(op.w.codes));
  const auto kernel = nibble::kernel(device, "product_nf4", prelude);
  for (const auto range : gpu::binding_slices(device, rows, {row_bytes(op.x), row_bytes(op.y), rank * sizeof(float)})) {
    const Tensor x = op.x.rows(range.begin, range.end), y = op.y.rows(range.begin, range.end);
    const ProductNf4Params params{.rows = range.end - range.begin, .outputs = turned ? inner : width, .inputs = turned ? width : inner,
                        .rank = rank, .scaling = op.scaling, .wall = 0};
    // Without a term something has to be bound.
    const Tensor left = op.left ? op.left.rows(range.begin, range.end) : op.w.absmax, right = op.left ? op.right : op.w.absmax;
    recorder.dispatch(kernel,
                      {gpu::read(x), gpu::read(op.w.packed), gpu::read(op.w.absmax), gpu::read_write(y), gpu::read(left),
                       gpu::read(right)},
                      params, {(width + tile_columns - 1) / tile_columns, (params.rows + tile_m - 1) / tile_m},
                      {.bytes = static_cast<double>(x.bytes() + y.bytes() + op.w.packed.bytes() + op.w.absmax.bytes()),
                       .flops = 2.0 * (inner + rank) * static_cast<double>(y.size())});
  }
}

}  // namespace

void record_nt(gpu::Recorder& recorder, const Nf4Product& op) { record_product(recorder, op, false); }

void record_nn(gpu::Recorder& recorder, const Nf4Product& op) { record_product(recorder, op, true); }

bool nf4_product_fits(const gpu::Device& device, std::uint32_t outputs, std::uint32_t inputs) {
  const gpu::AdapterInfo& info = device.info();
  return info.type == gpu::AdapterType::software && info.subgroups && info.subgroup_min_size == subgroup_lanes &&
         info.subgroup_max_size == subgroup_lanes && outputs % 8 == 0 && inputs % nf4_block == 0 &&
         std::uint64_t{outputs} * inputs / 2 <= info.limits.max_binding;
}

}  // namespace nibble
