#include "nibble/kernels/product_tiled.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace nibble {
namespace {

// The uniform of lib/product.wgsl.
struct ProductTiledParams {
  std::uint32_t rows, outputs, inputs, stride, first, share;
  float scale;
  std::uint32_t seed, stream, first_row, threshold;
  float keep_scale;
};

// How a kernel spreads its work; each kind is a file of its own, which says what the numbers mean.
struct Tile {
  enum class Kind { plain, staged, narrow, lanes };
  Kind kind = Kind::plain;
  std::uint32_t lanes_k = 1, lanes_n = 8, lanes_m = 8, tile_n = 4, tile_m = 4, width = 1, step = 2;
  bool turned = false;  // of `lanes`: NN
  std::uint32_t columns() const { return lanes_n * tile_n * width; }
  std::uint32_t rows() const { return (kind == Kind::narrow ? 1 : lanes_m) * tile_m; }
};

// Rows of a TN product that are worth a part of their own, and workgroups that keep the adapter busy.
constexpr std::uint32_t rows_per_part = 128, narrow_rows_per_part = 64;
constexpr std::uint32_t busy_groups(gpu::AdapterType adapter) {
  return adapter == gpu::AdapterType::software ? 8 : 1024;
}
constexpr std::uint32_t busy_narrow_groups = 256, busy_wide_groups = 512;

// The widest result, or operand of a TN product, that the narrow kernels take, and the shortest sums worth sharing.
constexpr std::uint32_t narrow_columns = 64, narrow_inner = 256;

// Vectors of the narrow operand of a TN product that an invocation takes. With 4 an H100 needs three to seven times as
// long, as if the sums left its registers.
constexpr std::uint32_t narrow_vectors = 2;

// A result of rows x columns summed over `inner`; `vectors`: columns are taken in vectors where they are many.
struct Size {
  std::uint32_t rows, columns, inner;
  bool vectors;
};

std::uint32_t groups(std::uint32_t count, std::uint32_t each) { return (count + each - 1) / each; }

// Halves the rows of a workgroup down to `least` an invocation while there are fewer workgroups than `busy`.
void split_rows(Tile& tile, const Size& size, std::uint32_t least, std::uint32_t busy) {
  const std::uint64_t across = groups(size.columns, tile.columns());
  while (tile.tile_m > least && across * groups(size.rows, tile.rows()) < busy) tile.tile_m /= 2;
}

// The software adapter runs 8 invocations as one vector and likes a single row of them, whose loads of x are the same
// for all: 16 rows an invocation make up for the slow loads of w. A GPU hides latency with more and smaller invocations.
Tile make_tile(gpu::AdapterType adapter, const Size& size) {
  Tile tile;
  if (adapter == gpu::AdapterType::software) {
    tile.lanes_m = 1;
    tile.tile_m = 16;
  }
  if (size.vectors && size.columns >= 32 && size.columns % 4 == 0) {
    tile.width = 4;
    tile.tile_n = 2;
  }
  while (tile.tile_n > 1 && size.columns <= tile.columns() / 2) tile.tile_n /= 2;
  while (tile.tile_m > 1 && size.rows <= tile.rows() / 2) tile.tile_m /= 2;
  return tile;
}

// Large tiles make up for the software adapter's loads of w. The arithmetic's share grows with the rows, which only cost text.
Tile make_lanes_tile(const Size& size) {
  Tile tile{.kind = Tile::Kind::lanes, .lanes_m = 1, .tile_n = 4, .tile_m = 32, .step = 8, .turned = size.vectors};
  while (tile.tile_n > 1 && size.columns <= tile.columns() / 2) tile.tile_n /= 2;
  while (tile.tile_m > 1 && size.rows <= tile.rows() / 2) tile.tile_m /= 2;
  return tile;
}

bool suits_lanes(const Size& size, const TiledProduct& op) {
  const bool drops_result = size.vectors && op.dropout.probability > 0;
  return size.inner % 8 == 0 && !drops_result;
}

// 256 invocations to whom a result of a LoRA's rank falls. More than 8 rows of sums each were no faster.
Tile make_narrow_tile(const Size& size) {
  const std::uint32_t lanes_n = std::bit_ceil(groups(size.columns, 4));
  Tile tile{.kind = Tile::Kind::narrow, .lanes_k = 256 / lanes_n, .lanes_n = lanes_n, .lanes_m = 1,
            .tile_n = size.vectors ? 1u : 4u, .tile_m = 8, .width = size.vectors ? 4u : 1u,
            .step = size.vectors ? 4u : 1u};
  split_rows(tile, size, 4, busy_narrow_groups);
  return tile;
}

// A wide result of a short sum, bound by the reading and writing of y: neighbours lie along its rows.
Tile make_short_tile(const Size& size) {
  Tile tile{.lanes_n = 32, .lanes_m = 4, .tile_n = size.vectors ? 1u : 2u, .tile_m = 8,
            .width = size.vectors ? 4u : 1u};
  split_rows(tile, size, 1, busy_wide_groups);
  return tile;
}

// The tile of an NT or, with vectors, NN product.
Tile choose_tile(gpu::AdapterType adapter, const Size& size, const TiledProduct& op) {
  const std::uint32_t in_vectors = size.vectors ? size.columns : size.inner;
  const bool drops = op.dropout.probability > 0;
  if (adapter == gpu::AdapterType::software) return suits_lanes(size, op) ? make_lanes_tile(size) : make_tile(adapter, size);
  if (size.columns <= narrow_columns && size.inner >= narrow_inner) {
    const bool fits = !size.vectors || (!drops && size.columns % 4 == 0 && size.inner % 4 == 0);
    if (fits) return make_narrow_tile(size);
  }
  if (size.columns > narrow_columns && size.inner < 64 && in_vectors % 4 == 0) return make_short_tile(size);
  if (size.columns > 64 && size.rows > 16 && in_vectors % 4 == 0 && size.inner >= 64 && !drops) {
    return {.kind = Tile::Kind::staged, .lanes_n = 16, .lanes_m = 16, .tile_n = size.vectors ? 1u : 4u, .tile_m = 4,
            .width = size.vectors ? 4u : 1u, .step = 1};
  }
  return make_tile(adapter, size);
}

std::string file_of(std::string_view product, const Tile& tile) {
  if (tile.kind == Tile::Kind::lanes) return "product_lanes";
  constexpr std::string_view suffixes[] = {"", "_staged", "_narrow"};
  return fmt::format("{}{}", product, suffixes[static_cast<std::size_t>(tile.kind)]);
}

std::uint32_t width_of(std::uint32_t row_length) { return row_length % 4 == 0 ? 4 : 1; }

gpu::Kernel tiled_kernel(gpu::Device& device, std::string_view file, const TiledProduct& op, const Tile& tile,
                         std::uint32_t width, bool accumulate, bool wide_x = false) {
  gpu::Prelude prelude;
  if (op.x.data.dtype() == DType::f16 || op.w.data.dtype() == DType::f16) prelude.enable("f16");
  prelude.alias("ElementX", name_of(op.x.data.dtype())).alias("ElementW", name_of(op.w.data.dtype()));
  prelude.constant("LANES_K", tile.lanes_k).constant("LANES_N", tile.lanes_n).constant("LANES_M", tile.lanes_m);
  prelude.constant("TILE_N", tile.tile_n).constant("TILE_M", tile.tile_m);
  prelude.constant("STEP", tile.step).constant("ACCUMULATE", accumulate).constant("WIDE_X", wide_x);
  prelude.constant("TURNED", tile.turned);
  prelude.constant("SCALE_BINDING", 4u).constant("W_SCALE_BINDING", op.x.scale ? 5u : 4u);
  const bool drops = op.dropout.probability > 0;
  return kernel(device, file, prelude,
                {"product", width == 4 ? "width4" : "width1", op.x.scale ? "x_scale" : "x_scale_one",
                 op.w.scale ? "w_scale" : "w_scale_one", "random", !drops ? "keep_all" : width == 4 ? "dropout4" : "dropout1"});
}

ProductTiledParams make_params(const TiledProduct& op) {
  const double p = op.dropout.probability;
  check(p >= 0 && p < 1, "dropout", "The probability ({}) is not in [0, 1).", p);
  return {.scale = op.scale,
          .seed = op.dropout.seed,
          .stream = op.dropout.stream,
          .first_row = op.dropout.first_row,
          .threshold = static_cast<std::uint32_t>(std::llround(p * 0x1p32 - (p * 0x1p32 >= 0x1p32 - 1 ? 1 : 0))),
          .keep_scale = static_cast<float>(1 / (1 - p))};
}

gpu::AdapterType adapter_of(const gpu::Device& device, const TiledProduct& op) {
  return op.tiles_for.value_or(device.info().type);
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

gpu::Work work_of(const Tensor& x, const Tensor& w, const Tensor& y, double inner) {
  return {.bytes = static_cast<double>(x.bytes() + w.bytes() + y.bytes()),
          .flops = 2.0 * inner * static_cast<double>(y.size())};
}

Operand rows_of(const Operand& operand, gpu::RowRange range) {
  return {operand.data.rows(range.begin, range.end),
          operand.scale ? operand.scale.rows(range.begin, range.end) : Tensor{}};
}

void dispatch(gpu::Recorder& recorder, const gpu::Kernel& kernel, const Operand& x, const Operand& w, const Tensor& y,
              const ProductTiledParams& params, gpu::Grid grid, gpu::Work work) {
  std::vector<gpu::Binding> bindings = {gpu::read(x.data), gpu::read(w.data), gpu::read_write(y)};
  if (x.scale) bindings.push_back(gpu::read(x.scale));
  if (w.scale) bindings.push_back(gpu::read(w.scale));
  recorder.dispatch_bytes(kernel, bindings, std::as_bytes(std::span<const ProductTiledParams, 1>(&params, 1)), grid, work);
}

}  // namespace

void record_nt(gpu::Recorder& recorder, const TiledProduct& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.x.data.dim(0), inputs = op.x.data.dim(1), outputs = op.w.data.dim(0);
  check_shapes("product_nt", op, op.w.data.dim(1) == inputs && op.y.dim(0) == rows && op.y.dim(1) == outputs && inputs > 0);
  const Tile tile = choose_tile(adapter_of(device, op), {rows, outputs, inputs, false}, op);
  const auto kernel = tiled_kernel(device, file_of("product_nt", tile), op, tile, width_of(inputs), op.accumulate);
  ProductTiledParams params = make_params(op);
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
  Tile tile = choose_tile(adapter_of(device, op), {rows, inputs, outputs, true}, op);
  if (outputs % tile.step != 0) tile.step = 1;
  const std::string file = file_of("product_nn", tile);
  ProductTiledParams params = make_params(op);
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
          tiled_kernel(device, file, op, tile, tile.turned ? 4 : tile.width, op.accumulate || slice.begin > 0);
      const Tensor w = op.w.data.rows(slice.begin, slice.end);
      dispatch(recorder, kernel, x, {w, {}}, y, params,
               {groups(inputs, tile.columns()), groups(params.rows, tile.rows())}, work_of(x.data, w, y, params.outputs));
    }
  }
}

namespace {

// A TN product's tile, and the parts that its sum is cut into.
struct PlanTN {
  Tile tile;
  bool wide_x = false;  // of a narrow tile
  std::uint32_t parts = 1;
};

bool narrow_tn(gpu::AdapterType adapter, std::uint32_t outputs, std::uint32_t inputs) {
  return adapter != gpu::AdapterType::software && outputs % 4 == 0 && inputs % 4 == 0 &&
         std::min(outputs, inputs) <= narrow_columns && std::max(outputs, inputs) >= 128;
}

PlanTN plan_tn(gpu::AdapterType adapter, std::uint32_t rows, std::uint32_t outputs, std::uint32_t inputs) {
  PlanTN plan;
  const auto cut = [&](std::uint64_t tiles, std::uint32_t busy, std::uint32_t least_rows) {
    const std::uint64_t most = std::max(1u, rows / least_rows);
    plan.parts = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(busy / tiles, 1, most));
  };
  if (narrow_tn(adapter, outputs, inputs)) {
    const std::uint32_t narrow = std::min(outputs, inputs), vectors = std::min(narrow_vectors, groups(narrow, 4));
    plan.tile = {.kind = Tile::Kind::narrow, .lanes_n = 32, .lanes_m = 8, .tile_n = vectors, .width = 4, .step = 4};
    plan.wide_x = outputs > inputs;
    cut(std::uint64_t{groups(std::max(outputs, inputs), 128)} * groups(narrow, 4 * vectors), busy_narrow_groups,
        narrow_rows_per_part);
    return plan;
  }
  plan.tile = make_tile(adapter, {outputs, inputs, 0, true});
  cut(std::uint64_t{groups(outputs, plan.tile.rows())} * groups(inputs, plan.tile.columns()), busy_groups(adapter),
      rows_per_part);
  return plan;
}

gpu::Grid grid_of(const PlanTN& plan, std::uint32_t outputs, std::uint32_t inputs) {
  const Tile& tile = plan.tile;
  if (tile.kind == Tile::Kind::plain) return {groups(inputs, tile.columns()), groups(outputs, tile.rows()), plan.parts};
  return {groups(plan.wide_x ? outputs : inputs, 4 * tile.lanes_n),
          groups(plan.wide_x ? inputs : outputs, 4 * tile.tile_n), plan.parts};
}

std::uint64_t scratch_size(const PlanTN& plan, std::uint32_t outputs, std::uint32_t inputs) {
  return plan.parts == 1 ? 0 : std::uint64_t{plan.parts} * outputs * inputs;
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

std::uint64_t tn_scratch_size(gpu::AdapterType adapter, std::uint32_t rows, std::uint32_t outputs,
                              std::uint32_t inputs) {
  return scratch_size(plan_tn(adapter, rows, outputs, inputs), outputs, inputs);
}

void record_tn(gpu::Recorder& recorder, const TiledProduct& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.x.data.dim(0), outputs = op.x.data.dim(1), inputs = op.w.data.dim(1);
  check_shapes("product_tn", op, op.w.data.dim(0) == rows && op.y.dim(0) == outputs && op.y.dim(1) == inputs);
  const PlanTN plan = plan_tn(adapter_of(device, op), rows, outputs, inputs);
  const Tile& tile = plan.tile;
  const bool narrow = tile.kind == Tile::Kind::narrow;
  const std::uint32_t parts = plan.parts;
  const std::uint64_t scratch = scratch_size(plan, outputs, inputs);
  check(scratch == 0 || (op.scratch && op.scratch.size() >= scratch), "product_tn",
        "The scratch of {} elements is smaller than the {} needed.", op.scratch ? op.scratch.size() : 0, scratch);
  const auto kernel = tiled_kernel(device, file_of("product_tn", tile), op, tile, tile.width, parts == 1, plan.wide_x);
  ProductTiledParams params = make_params(op);
  params.inputs = inputs;
  params.stride = outputs;
  for (const auto range : gpu::binding_slices(device, rows, {row_bytes(op.x.data), row_bytes(op.w.data), 4})) {
    const Operand x = rows_of(op.x, range), w = rows_of(op.w, range);
    params.rows = range.end - range.begin;
    params.first_row = op.dropout.first_row + range.begin;
    params.share = groups(params.rows, parts);
    for (const auto slice : gpu::binding_slices(device, outputs, {row_bytes(op.y)}, narrow ? 4 : 1)) {
      params.first = slice.begin;
      params.outputs = slice.end - slice.begin;
      const Tensor y = op.y.rows(slice.begin, slice.end);
      const Tensor target = parts == 1 ? y : op.scratch.part(0, {parts, params.outputs, inputs});
      dispatch(recorder, kernel, x, w, target, params,
               grid_of(plan, params.outputs, inputs),
               work_of(x.data, w.data, target, params.share));
      if (parts > 1) record_sum(recorder, target, y, parts);
    }
  }
}

}  // namespace nibble
