#include "nibble/kernels/product_tiled.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

// The uniform of lib/product.wgsl.
struct Params {
  std::uint32_t rows, outputs, inputs, stride, first, share;
  float scale;
  std::uint32_t seed, stream, first_row, threshold;
  float keep_scale;
};

// What one invocation and one workgroup compute.
struct Tile {
  std::uint32_t lanes_k, lanes_n, lanes_m, tile_n, tile_m, width, step;
  bool staged = false;  // through workgroup memory: product_*_staged.wgsl
  std::uint32_t columns() const { return lanes_n * tile_n * width; }
  std::uint32_t rows() const { return lanes_m * tile_m; }
};

// Rows of a TN product that are worth a part of their own, and workgroups that keep the adapter busy.
constexpr std::uint32_t rows_per_part = 128;
std::uint32_t busy_groups(const gpu::Device& device) {
  return device.info().type == gpu::AdapterType::software ? 8 : 1024;
}

// A result of rows x columns summed over `inner`; `vectors`: columns are taken in vectors where they are many.
struct Size {
  std::uint32_t rows, columns, inner;
  bool vectors;
};

// The software adapter runs 8 invocations as one vector and likes a single row of them, whose loads of x are the same for
// all: 16 rows an invocation make up for the slow loads of w. A GPU hides latency with more and smaller invocations; where
// the result is as narrow as a LoRA's rank, they share the inner dimension to be many.
Tile make_tile(gpu::AdapterType adapter, const Size& size) {
  Tile tile{.lanes_k = 1, .lanes_n = 8, .lanes_m = 8, .tile_n = 4, .tile_m = 4, .width = 1, .step = 2};
  if (adapter == gpu::AdapterType::software) {
    tile.lanes_m = 1;
    tile.tile_m = 16;
  } else if (size.columns <= 64 && size.inner >= 256) {
    tile.lanes_k = 16;
    tile.lanes_n = tile.lanes_m = 4;
  }
  if (size.vectors && size.columns >= 32 && size.columns % 4 == 0) {
    tile.width = 4;
    tile.tile_n = 2;
  }
  while (tile.tile_n > 1 && size.columns <= tile.columns() / 2) tile.tile_n /= 2;
  while (tile.tile_m > 1 && size.rows <= tile.rows() / 2) tile.tile_m /= 2;
  return tile;
}

// The tile of product_nt_staged.wgsl and, with vectors, product_nn_staged.wgsl, where a GPU has use for it.
Tile make_wide_tile(gpu::AdapterType adapter, const Size& size, const TiledProduct& op) {
  const Tile tile = make_tile(adapter, size);
  const std::uint32_t in_vectors = size.vectors ? size.columns : size.inner;
  const bool fits = adapter != gpu::AdapterType::software && size.columns > 64 && size.rows > 16 && in_vectors % 4 == 0 &&
                    size.inner >= 64 && op.dropout.probability == 0;
  if (!fits) return tile;
  return {.lanes_k = 1, .lanes_n = 16, .lanes_m = 16, .tile_n = size.vectors ? 1u : 4u, .tile_m = 4,
          .width = size.vectors ? 4u : 1u, .step = 1, .staged = true};
}

std::uint32_t width_of(std::uint32_t row_length) { return row_length % 4 == 0 ? 4 : 1; }

std::uint32_t groups(std::uint32_t count, std::uint32_t each) { return (count + each - 1) / each; }

gpu::Kernel tiled_kernel(gpu::Device& device, std::string_view file, const TiledProduct& op, const Tile& tile,
                         std::uint32_t width, bool accumulate) {
  gpu::Prelude prelude;
  if (op.x.data.dtype() == DType::f16 || op.w.data.dtype() == DType::f16) prelude.enable("f16");
  prelude.alias("ElementX", name_of(op.x.data.dtype())).alias("ElementW", name_of(op.w.data.dtype()));
  prelude.constant("LANES_K", tile.lanes_k).constant("LANES_N", tile.lanes_n).constant("LANES_M", tile.lanes_m);
  prelude.constant("TILE_N", tile.tile_n).constant("TILE_M", tile.tile_m);
  prelude.constant("STEP", tile.step).constant("ACCUMULATE", accumulate);
  prelude.constant("SCALE_BINDING", 4u).constant("W_SCALE_BINDING", op.x.scale ? 5u : 4u);
  const bool drops = op.dropout.probability > 0;
  return kernel(device, file, prelude,
                {"product", width == 4 ? "width4" : "width1", op.x.scale ? "x_scale" : "x_scale_one",
                 op.w.scale ? "w_scale" : "w_scale_one", "random", !drops ? "keep_all" : width == 4 ? "dropout4" : "dropout1"});
}

Params make_params(const TiledProduct& op) {
  const double p = op.dropout.probability;
  check(p >= 0 && p < 1, "dropout", "The probability ({}) is not in [0, 1).", p);
  return {.scale = op.scale,
          .seed = op.dropout.seed,
          .stream = op.dropout.stream,
          .first_row = op.dropout.first_row,
          .threshold = static_cast<std::uint32_t>(std::llround(p * 0x1p32 - (p * 0x1p32 >= 0x1p32 - 1 ? 1 : 0))),
          .keep_scale = static_cast<float>(1 / (1 - p))};
}

void check_shapes(std::string_view where, const TiledProduct& op, bool fits) {
  check(fits && op.y.dtype() == DType::f32, where, "Shapes do not fit: x {}, w {}, y {} ({}).", op.x.data.shape_text(),
        op.w.data.shape_text(), op.y.shape_text(), name_of(op.y.dtype()));
  for (const Operand* operand : {&op.x, &op.w}) {
    if (!operand->scale) continue;
    check(operand->scale.dim(0) == operand->data.dim(0), where, "An operand has {} rows and {} scales.",
          operand->data.dim(0), operand->scale.dim(0));
  }
}

// Bytes of one row.
std::uint64_t row_bytes(const Tensor& tensor) { return std::uint64_t{tensor.dim(1)} * size_of(tensor.dtype()); }

gpu::Work work_of(const Tensor& x, const Tensor& w, const Tensor& y, double inner) {
  return {.bytes = static_cast<double>(x.bytes() + w.bytes() + y.bytes()),
          .flops = 2.0 * inner * static_cast<double>(y.size())};
}

Operand rows_of(const Operand& operand, gpu::RowRange range) {
  return {operand.data.rows(range.begin, range.end),
          operand.scale ? operand.scale.rows(range.begin, range.end) : Tensor{}};
}

void dispatch(gpu::Recorder& recorder, const gpu::Kernel& kernel, const Operand& x, const Operand& w, const Tensor& y,
              const Params& params, gpu::Grid grid, gpu::Work work) {
  std::vector<gpu::Binding> bindings = {gpu::read(x.data), gpu::read(w.data), gpu::read_write(y)};
  if (x.scale) bindings.push_back(gpu::read(x.scale));
  if (w.scale) bindings.push_back(gpu::read(w.scale));
  recorder.dispatch_bytes(kernel, bindings, std::as_bytes(std::span<const Params, 1>(&params, 1)), grid, work);
}

}  // namespace

void record_nt(gpu::Recorder& recorder, const TiledProduct& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.x.data.dim(0), inputs = op.x.data.dim(1), outputs = op.w.data.dim(0);
  check_shapes("product_nt", op, op.w.data.dim(1) == inputs && op.y.dim(0) == rows && op.y.dim(1) == outputs && inputs > 0);
  const Tile tile = make_wide_tile(op.tiles_for.value_or(device.info().type), {rows, outputs, inputs, false}, op);
  const auto kernel = tiled_kernel(device, tile.staged ? "product_nt_staged" : "product_nt", op, tile, width_of(inputs), op.accumulate);
  Params params = make_params(op);
  params.inputs = inputs;
  params.stride = outputs;
  for (const auto range : gpu::binding_slices(device, rows, {row_bytes(op.x.data), row_bytes(op.y), 4})) {
    const Operand x = rows_of(op.x, range);
    const Tensor y = op.y.rows(range.begin, range.end);
    params.rows = range.end - range.begin;
    params.first_row = op.dropout.first_row + range.begin;
    for (const auto slice : gpu::binding_slices(device, outputs, {row_bytes(op.w.data)})) {
      params.first = slice.begin;
      params.outputs = slice.end - slice.begin;
      const Tensor w = op.w.data.rows(slice.begin, slice.end);
      dispatch(recorder, kernel, x, {w, {}}, y, params,
               {groups(params.outputs, tile.columns()), groups(params.rows, tile.rows())},
               work_of(x.data, w, y, inputs * double{1} * params.outputs / outputs));
    }
  }
}

void record_nn(gpu::Recorder& recorder, const TiledProduct& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.x.data.dim(0), outputs = op.x.data.dim(1), inputs = op.w.data.dim(1);
  check_shapes("product_nn", op, op.w.data.dim(0) == outputs && op.y.dim(0) == rows && op.y.dim(1) == inputs && outputs > 0);
  Tile tile = make_wide_tile(op.tiles_for.value_or(device.info().type), {rows, inputs, outputs, true}, op);
  if (outputs % tile.step != 0) tile.step = 1;
  const char* const file = tile.staged ? "product_nn_staged" : "product_nn";
  Params params = make_params(op);
  params.inputs = inputs;
  params.stride = outputs;
  for (const auto range : gpu::binding_slices(device, rows, {row_bytes(op.x.data), row_bytes(op.y), 4})) {
    const Operand x = rows_of(op.x, range);
    const Tensor y = op.y.rows(range.begin, range.end);
    params.rows = range.end - range.begin;
    params.first_row = op.dropout.first_row + range.begin;
    for (const auto slice : gpu::binding_slices(device, outputs, {row_bytes(op.w.data)}, tile.step)) {
      params.first = slice.begin;
      params.outputs = slice.end - slice.begin;
      const auto kernel =
          tiled_kernel(device, file, op, tile, tile.width, op.accumulate || slice.begin > 0);
      const Tensor w = op.w.data.rows(slice.begin, slice.end);
      dispatch(recorder, kernel, x, {w, {}}, y, params,
               {groups(inputs, tile.columns()), groups(params.rows, tile.rows())}, work_of(x.data, w, y, params.outputs));
    }
  }
}

namespace {

std::uint32_t tn_parts(const gpu::Device& device, std::uint32_t rows, std::uint32_t outputs, std::uint32_t inputs) {
  const Tile tile = make_tile(device.info().type, {outputs, inputs, 0, true});
  const std::uint64_t tiles = std::uint64_t{groups(outputs, tile.rows())} * groups(inputs, tile.columns());
  const std::uint64_t wanted = busy_groups(device) / tiles;
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(wanted, 1, std::max(1u, rows / rows_per_part)));
}

struct SumParams {
  std::uint32_t count, parts;
};

void record_sum(gpu::Recorder& recorder, const Tensor& part, const Tensor& y, std::uint32_t parts) {
  auto& device = recorder.device();
  const SumParams params{.count = static_cast<std::uint32_t>(y.size()), .parts = parts};
  recorder.dispatch(kernel(device, "product_sum", {}, {"grid"}), {gpu::read(part), gpu::read_write(y)}, params,
                    gpu::linear_grid(device, groups(params.count, 64)),
                    {.bytes = static_cast<double>(part.bytes() + 2 * y.bytes())});
}

}  // namespace

std::uint64_t tn_scratch_size(const gpu::Device& device, std::uint32_t rows, std::uint32_t outputs, std::uint32_t inputs) {
  const std::uint64_t parts = tn_parts(device, rows, outputs, inputs);
  return parts == 1 ? 0 : parts * outputs * inputs;
}

void record_tn(gpu::Recorder& recorder, const TiledProduct& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.x.data.dim(0), outputs = op.x.data.dim(1), inputs = op.w.data.dim(1);
  check_shapes("product_tn", op, op.w.data.dim(0) == rows && op.y.dim(0) == outputs && op.y.dim(1) == inputs);
  const Tile tile = make_tile(op.tiles_for.value_or(device.info().type), {outputs, inputs, 0, true});
  const std::uint32_t parts = tn_parts(device, rows, outputs, inputs);
  const std::uint64_t scratch = tn_scratch_size(device, rows, outputs, inputs);
  check(scratch == 0 || (op.scratch && op.scratch.size() >= scratch), "product_tn",
        "The scratch of {} elements is smaller than the {} needed.", op.scratch ? op.scratch.size() : 0, scratch);
  const auto kernel = tiled_kernel(device, "product_tn", op, tile, tile.width, parts == 1);
  Params params = make_params(op);
  params.inputs = inputs;
  params.stride = outputs;
  for (const auto range : gpu::binding_slices(device, rows, {row_bytes(op.x.data), row_bytes(op.w.data), 4})) {
    const Operand x = rows_of(op.x, range), w = rows_of(op.w, range);
    params.rows = range.end - range.begin;
    params.first_row = op.dropout.first_row + range.begin;
    params.share = groups(params.rows, parts);
    for (const auto slice : gpu::binding_slices(device, outputs, {row_bytes(op.y)})) {
      params.first = slice.begin;
      params.outputs = slice.end - slice.begin;
      const Tensor y = op.y.rows(slice.begin, slice.end);
      const Tensor target = parts == 1 ? y : op.scratch.part(0, {parts, params.outputs, inputs});
      dispatch(recorder, kernel, x, w, target, params,
               {groups(inputs, tile.columns()), groups(params.outputs, tile.rows()), parts},
               work_of(x.data, w.data, target, params.share));
      if (parts > 1) record_sum(recorder, target, y, parts);
    }
  }
}

}  // namespace nibble
