#include "nibble/kernels/expert_product.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

constexpr std::uint32_t tile_columns = 64;
constexpr std::uint32_t few_rows = 64;             // which expert_vec.wgsl takes each by itself
constexpr std::uint32_t most_vec_columns = 65535;  // of its grid

struct ProductParams {
  std::uint32_t outputs, inputs, first_expert, bound_experts;
  float scaling;
};

struct GradientParams {
  std::uint32_t rank, columns;
  float scaling;
};

struct RowParams {
  std::uint32_t rows, columns;
};

std::uint32_t tiles_of(std::uint32_t columns) { return (columns + tile_columns - 1) / tile_columns; }

std::uint32_t x_rows(const ExpertRows& rows, bool by_token) { return by_token ? rows.slots / rows.per_token : rows.slots; }

void check_weight(std::string_view where, const ExpertProduct& op, std::uint32_t outputs, std::uint32_t inputs) {
  const std::uint64_t count = std::uint64_t{op.rows.experts} * outputs * inputs;
  check(count <= UINT32_MAX, where, "The weights of {} experts ({}, {}) have {} elements; at most {} can be counted.", op.rows.experts, outputs,
        inputs, count, UINT32_MAX);
  const bool fits = op.w.values ? op.w.values.size() == count && op.w.values.dtype() == DType::f32
                                : op.w.nf4.packed.bytes() * 2 == count && op.w.nf4.absmax.size() * nf4_block == count && inputs % 8 == 0 &&
                                      std::uint64_t{outputs} * inputs % nf4_block == 0;
  check(fits, where, "The weights do not fit {} experts ({}, {}); in NF4, each is whole blocks of {} and rows of eight.", op.rows.experts, outputs,
        inputs, nf4_block);
}

gpu::Kernel product_kernel(gpu::Device& device, const ExpertProduct& op, bool turned) {
  const bool nf4 = !op.w.values;
  gpu::Prelude prelude;
  prelude.constant("ROWS", op.rows.tile_rows / 16).constant("NF4", nf4).constant("BY_TOKEN", op.by_token).constant("PER_TOKEN", op.rows.per_token);
  prelude.constant("ACCUMULATE", op.accumulate).text(nf4_codes_text(op.w.nf4.codes));
  return nibble::kernel(device, "expert_product", prelude, {"nf4_codes", nf4 ? "expert_nf4" : "expert_f32"}, turned ? "nn" : "nt");
}

// What of a product is taken otherwise where there are few rows.
struct Way {
  gpu::Kernel kernel;
  Tensor table;
  gpu::Grid grid;
};

Way way_of(gpu::Device& device, const ExpertProduct& op, bool turned) {
  const std::uint32_t columns = op.y.dim(1);
  if (turned || op.w.values || op.rows.slots > few_rows || columns > most_vec_columns) {
    return {product_kernel(device, op, turned), op.rows.tiles, {tiles_of(columns), op.rows.tiles.dim(0)}};
  }
  const bool software = device.info().type == gpu::AdapterType::software;
  const std::uint32_t outputs = software ? 1 : 8;
  gpu::Prelude prelude;
  prelude.constant("LANES", software ? 8u : 32u).constant("OUTPUTS", outputs).constant("BY_TOKEN", op.by_token);
  prelude.constant("PER_TOKEN", op.rows.per_token).constant("ACCUMULATE", op.accumulate).text(nf4_codes_text(op.w.nf4.codes));
  return {nibble::kernel(device, "expert_vec", prelude, {"nf4_codes"}), op.rows.expert, {(columns + outputs - 1) / outputs, op.rows.slots}};
}

void record_product(gpu::Recorder& recorder, const ExpertProduct& op, bool turned) {
  auto& device = recorder.device();
  const std::string_view where = turned ? "expert_product_nn" : "expert_product_nt";
  const std::uint32_t inner = op.x.dim(1), columns = op.y.dim(1), outputs = turned ? inner : columns, inputs = turned ? columns : inner;
  expect_shape(op.x, DType::f32, {x_rows(op.rows, op.by_token), inner}, where, "x");
  expect_shape(op.y, DType::f32, {op.rows.slots, columns}, where, "y");
  check_weight(where, op, outputs, inputs);
  const Way way = way_of(device, op, turned);
  const std::uint64_t count = std::uint64_t{outputs} * inputs;
  const bool nf4 = !op.w.values;
  const std::uint64_t w_bytes = nf4 ? count / 2 : 4 * count, absmax_bytes = nf4 ? count / nf4_block * 4 : 0;
  for (const auto part : gpu::binding_slices(device, op.rows.experts, {w_bytes, absmax_bytes})) {
    const std::uint32_t experts = part.end - part.begin;
    const auto of = [&](const Tensor& tensor, std::uint64_t size) {
      return tensor.part(part.begin * size, {static_cast<std::uint32_t>(experts * size)});
    };
    // Of f32 something has to be bound for absmax.
    const Tensor w = nf4 ? of(op.w.nf4.packed, w_bytes / size_of(op.w.nf4.packed.dtype())) : of(op.w.values, count);
    const Tensor absmax = nf4 ? of(op.w.nf4.absmax, count / nf4_block) : w;
    const double share = static_cast<double>(experts) / op.rows.experts;
    recorder.dispatch(way.kernel,
                      {gpu::read(op.x), gpu::read(w), gpu::read(absmax), gpu::read(way.table), gpu::read(op.rows.slot_of_row),
                       gpu::read_write(op.y)},
                      ProductParams{outputs, inputs, part.begin, experts, op.scaling}, way.grid,
                      {.bytes = share * static_cast<double>(op.x.bytes() + op.y.bytes()) + static_cast<double>(w.bytes()),
                       .flops = share * 2.0 * inner * static_cast<double>(op.y.size())});
  }
}

}  // namespace

void record_nt(gpu::Recorder& recorder, const ExpertProduct& op) { record_product(recorder, op, false); }

void record_nn(gpu::Recorder& recorder, const ExpertProduct& op) { record_product(recorder, op, true); }

void record(gpu::Recorder& recorder, const ExpertGradient& op) {
  auto& device = recorder.device();
  const std::uint32_t rank = op.narrow.dim(1), columns = op.wide.dim(1), experts = op.rows.experts;
  expect_shape(op.narrow, DType::f32, {op.rows.slots, rank}, "expert gradient", "narrow");
  expect_shape(op.wide, DType::f32, {x_rows(op.rows, op.by_token), columns}, "expert gradient", "wide");
  expect_shape(op.gradient, DType::f32, {experts * (op.turned ? columns : rank), op.turned ? rank : columns}, "expert gradient", "gradient");
  gpu::Prelude prelude;
  prelude.constant("BY_TOKEN", op.by_token).constant("PER_TOKEN", op.rows.per_token).constant("TURNED", op.turned);
  recorder.dispatch(nibble::kernel(device, "expert_gradient", prelude),
                    {gpu::read(op.narrow), gpu::read(op.wide), gpu::read(op.rows.begin), gpu::read(op.rows.slot_of_row), gpu::read_write(op.gradient)},
                    GradientParams{rank, columns, op.scaling}, {tiles_of(columns), (rank + 15) / 16, experts},
                    {.bytes = static_cast<double>(op.narrow.bytes() + op.wide.bytes() + 2 * op.gradient.bytes()),
                     .flops = 2.0 * op.rows.slots * rank * columns});
}

void record(gpu::Recorder& recorder, const ExpertSwiGlu& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.rows.slots, columns = op.gate.dim(1);
  expect_shape(op.gate, DType::f32, {rows, columns}, "expert swiglu", "gate");
  expect_shape(op.up, DType::f32, {rows, columns}, "expert swiglu", "up");
  expect_shape(op.z, DType::f32, {rows, columns}, "expert swiglu", "z");
  expect_shape(op.weight, DType::f32, {rows / op.rows.per_token, op.rows.per_token}, "expert swiglu", "weight");
  const RowKernel row_kernel(device, columns);
  const auto kernel = row_kernel.kernel(device, "expert_swiglu", "forward", row_kernel.prelude(DType::f32));
  recorder.dispatch(kernel,
                    {gpu::read(op.gate), gpu::read(op.up), gpu::read(op.rows.slot_of_row), gpu::read(op.weight), gpu::write(op.z)},
                    RowParams{rows, columns}, gpu::linear_grid(device, rows),
                    {.bytes = 3.0 * static_cast<double>(op.z.bytes()), .flops = 6.0 * static_cast<double>(op.z.size())});
}

void record(gpu::Recorder& recorder, const ExpertSwiGluBackward& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.rows.slots, columns = op.gate.dim(1);
  for (const auto& [tensor, name] : {std::pair{&op.dz, "dz"}, {&op.gate, "gate"}, {&op.up, "up"}, {&op.d_gate, "d_gate"}, {&op.d_up, "d_up"}}) {
    expect_shape(*tensor, DType::f32, {rows, columns}, "expert swiglu backward", name);
  }
  for (const auto& [tensor, name] : {std::pair{&op.weight, "weight"}, {&op.d_weight, "d_weight"}}) {
    expect_shape(*tensor, DType::f32, {rows / op.rows.per_token, op.rows.per_token}, "expert swiglu backward", name);
  }
  const RowKernel row_kernel(device, columns);
  const auto kernel = row_kernel.kernel(device, "expert_swiglu", "backward", row_kernel.prelude(DType::f32));
  recorder.dispatch(kernel,
                    {gpu::read(op.gate), gpu::read(op.up), gpu::read(op.rows.slot_of_row), gpu::read(op.weight), gpu::read(op.dz),
                     gpu::write(op.d_gate), gpu::write(op.d_up), gpu::write(op.d_weight)},
                    RowParams{rows, columns}, gpu::linear_grid(device, rows),
                    {.bytes = 5.0 * static_cast<double>(op.gate.bytes()), .flops = 14.0 * static_cast<double>(op.gate.size())});
}

}  // namespace nibble
