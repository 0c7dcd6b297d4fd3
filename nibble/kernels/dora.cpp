#include "nibble/kernels/dora.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "nibble/kernels/flat_kernel.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

constexpr std::uint32_t rows_of_workgroup = 4, dora_lanes = 64;

struct DoraParams {
  std::uint32_t rows, columns, rank;
  float scaling;
};

gpu::Kernel norm_kernel(gpu::Device& device, CodeBook codes, std::string_view entry) {
  gpu::Prelude prelude;
  prelude.constant("ROWS", rows_of_workgroup).constant("WORKGROUP", dora_lanes).text(nf4_codes_text(codes));
  return kernel(device, "dora", prelude, {"grid", "row_reduce", "nf4"}, entry);
}

// What both operations read of rows [begin, end), with the bindings' order.
struct Rows {
  std::uint32_t rows, columns, rank;
  Tensor packed, absmax, a, b;

  Rows(const Nf4& w, const Tensor& of_a, const Tensor& of_b) : rows(of_b.dim(0)), columns(of_a.dim(1)), rank(of_a.dim(0)), a(of_a), b(of_b) {
    expect_shape(b, DType::f32, {rows, rank}, "dora", "b");
    expect_shape(a, DType::f32, {rank, columns}, "dora", "a");
    check(columns % nf4_block == 0 && w.packed.bytes() * 2 == std::uint64_t{rows} * columns && w.absmax.size() * nf4_block == std::uint64_t{rows} * columns,
          "dora", "{} packed bytes and {} block maxima do not make a weight of {} x {} in whole blocks of {}.", w.packed.bytes(), w.absmax.size(),
          rows, columns, nf4_block);
    packed = Tensor(w.packed.buffer(), w.packed.offset(), DType::u32, {rows, columns / 8});
    absmax = w.absmax.view({rows, columns / nf4_block});
  }

  std::vector<gpu::RowRange> slices(const gpu::Device& device) const {
    return gpu::binding_slices(device, rows, {columns / 2, columns / nf4_block * 4, std::uint64_t{rank} * 4, 4});
  }
  std::vector<gpu::Binding> bindings(gpu::RowRange range) const {
    const auto cut = [&](const Tensor& tensor) { return gpu::read(tensor.rows(range.begin, range.end)); };
    return {cut(packed), cut(absmax), gpu::read(a), cut(b)};
  }
  void dispatch(gpu::Recorder& recorder, const gpu::Kernel& entry, const std::vector<gpu::Binding>& bindings, gpu::RowRange range,
                float scaling) const {
    const std::uint32_t count = range.end - range.begin;
    const DoraParams params{count, columns, rank, scaling};
    recorder.dispatch_bytes(entry, bindings, std::as_bytes(std::span(&params, 1)),
                            gpu::linear_grid(recorder.device(), (count + rows_of_workgroup - 1) / rows_of_workgroup),
                            {.bytes = count * (columns * 0.5625 + 4.0 * rank), .flops = 2.0 * count * columns * (rank + 1)});
  }
};

}  // namespace

void record(gpu::Recorder& recorder, const DoraNorm& op) {
  const Rows rows(op.w, op.a, op.b);
  expect_shape(op.norm, DType::f32, {rows.rows}, "dora norm", "norm");
  const auto entry = norm_kernel(recorder.device(), op.w.codes, "norms");
  for (const auto range : rows.slices(recorder.device())) {
    auto bindings = rows.bindings(range);
    bindings.push_back(gpu::write(op.norm.rows(range.begin, range.end)));
    rows.dispatch(recorder, entry, bindings, range, op.scaling);
  }
}

void record(gpu::Recorder& recorder, const DoraGain& op) {
  const Rows rows(op.w, op.a, op.b);
  expect_shape(op.magnitude, DType::f32, {rows.rows}, "dora gain", "magnitude");
  expect_shape(op.gain, DType::f32, {rows.rows}, "dora gain", "gain");
  expect_shape(op.b_read, DType::f32, {rows.rows, rows.rank}, "dora gain", "b_read");
  expect_shape(op.absmax, DType::f32, {static_cast<std::uint32_t>(op.w.absmax.size())}, "dora gain", "absmax");
  const Tensor absmax = op.absmax.view({rows.rows, rows.columns / static_cast<std::uint32_t>(nf4_block)});
  const auto entry = norm_kernel(recorder.device(), op.w.codes, "gains");
  for (const auto range : rows.slices(recorder.device())) {
    const auto cut = [&](const Tensor& tensor) { return tensor.rows(range.begin, range.end); };
    auto bindings = rows.bindings(range);
    bindings.push_back(gpu::read(cut(op.magnitude)));
    for (const Tensor& to : {absmax, op.b_read, op.gain}) bindings.push_back(gpu::write(cut(to)));
    rows.dispatch(recorder, entry, bindings, range, op.scaling);
  }
}

void record(gpu::Recorder& recorder, const DoraGradientB& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.db.dim(0), rank = op.db.dim(1);
  expect_shape(op.db_read, DType::f32, {rows, rank}, "dora gradient", "db_read");
  expect_shape(op.gain, DType::f32, {rows}, "dora gradient", "gain");
  expect_shape(op.db, DType::f32, {rows, rank}, "dora gradient", "db");
  const auto entry = flat_kernel(device, "dora_gradients", "b");
  for (const auto range : gpu::binding_slices(device, rows, {std::uint64_t{rank} * 4, 4})) {
    const auto cut = [&](const Tensor& tensor) { return tensor.rows(range.begin, range.end); };
    struct {
      std::uint32_t count, rank;
    } const params{(range.end - range.begin) * rank, rank};
    recorder.dispatch(entry, {gpu::read(cut(op.db_read)), gpu::read(cut(op.gain)), gpu::read_write(cut(op.db))}, params,
                      flat_grid(device, params.count), {.bytes = 12.0 * params.count, .flops = 2.0 * params.count});
  }
}

void record(gpu::Recorder& recorder, const DoraGradientMagnitude& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.dy.data.dim(0), columns = op.magnitude.dim(0);
  const auto check_operand = [&](const Operand& operand, std::string_view name) {
    expect_shape(operand, rows, operand.data.dim(1), "dora gradient", name);
    check(op.first + std::uint64_t{columns} <= operand.data.dim(1), "dora gradient", "Columns {} to {} of {} {} were named.", op.first,
          op.first + columns, name, operand.data.shape_text());
  };
  check_operand(op.dy, "dy");
  check_operand(op.y, "y");
  expect_shape(op.magnitude, DType::f32, {columns}, "dora gradient", "magnitude");
  expect_shape(op.d_magnitude, DType::f32, {columns}, "dora gradient", "d_magnitude");
  check(!op.bias || op.bias_first + std::uint64_t{columns} <= op.bias.size(), "dora gradient", "The bias has {} elements, less than {} from {} on.",
        op.bias ? op.bias.size() : 0, columns, op.bias_first);
  constexpr std::uint32_t columns_of_workgroup = 32, row_lanes = 8;
  const bool dy_scaled = is_scaled(op.dy), y_scaled = is_scaled(op.y);
  gpu::Prelude prelude;
  if (dy_scaled || y_scaled) prelude.enable("f16");
  prelude.alias("DyData", name_of(op.dy.data.dtype())).alias("YData", name_of(op.y.data.dtype()));
  prelude.constant("DY_SCALED", dy_scaled).constant("Y_SCALED", y_scaled).constant("HAS_BIAS", static_cast<bool>(op.bias));
  const auto entry = kernel(device, "dora_magnitude", prelude.constant("COLUMNS", columns_of_workgroup).constant("ROWS", row_lanes), {"grid"});
  struct {
    std::uint32_t rows, columns, dy_stride, y_stride, first, bias_first;
  } params{0, columns, op.dy.data.dim(1), op.y.data.dim(1), op.first, op.bias_first};
  for (const auto range : gpu::binding_slices(device, rows, {data_row_bytes(op.dy), scale_row_bytes(op.dy), data_row_bytes(op.y), scale_row_bytes(op.y)})) {
    const Operand dy = operand_rows(op.dy, range), y = operand_rows(op.y, range);
    params.rows = range.end - range.begin;
    const auto or_unread = [&](const Tensor& tensor) { return gpu::read(tensor ? tensor : op.magnitude); };
    recorder.dispatch(entry,
                      {gpu::read(dy.data), or_unread(dy.scale), gpu::read(y.data), or_unread(y.scale), or_unread(op.bias),
                       gpu::read(op.magnitude), gpu::read_write(op.d_magnitude)},
                      params, gpu::linear_grid(device, (columns + columns_of_workgroup - 1) / columns_of_workgroup),
                      {.bytes = double(params.rows) * columns * static_cast<double>(size_of(dy.data.dtype()) + size_of(y.data.dtype())),
                       .flops = 3.0 * params.rows * columns});
  }
}

}  // namespace nibble
