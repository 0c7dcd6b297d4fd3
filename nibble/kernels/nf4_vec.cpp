#include "nibble/kernels/nf4_vec.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "nibble/kernels/product_vec.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>
#include <bit>

namespace nibble {
namespace {

constexpr std::string_view in_nf4_vec = "nf4_vec";

struct Nf4VecParams {
  std::uint32_t rows, outputs, inputs, rank = 0, first_end = 0, second_end = 0, adapted = 0;
  float eps = 0;
  std::array<float, 3> scaling{};
  std::uint32_t hidden = 0, first_row = 0;
};

// Invocations that share `outputs` rows of a weight, and of these groups in a workgroup.
struct Spread {
  std::uint32_t outputs, lanes, groups;
  bool table;

  // A GPU needs many words on their way at once: it gets as many invocations as hold them, but no more than there are words in
  // a row. Eight outputs a group halve the reading of x, where there are groups enough and registers for their sums.
  Spread(gpu::AdapterType type, std::uint32_t rows, std::uint32_t weight_rows, std::uint32_t inputs) {
    constexpr std::uint32_t workgroup = 128, enough = 96 * 1024, many = 8192;
    table = type != gpu::AdapterType::software;
    outputs = table && rows == 1 && weight_rows >= many ? 8 : 4;
    lanes = 8, groups = 1;
    if (!table) return;
    const std::uint32_t words = inputs / 8;
    lanes = 32;
    while (lanes < 256 && 2 * lanes <= words && (lanes < 64 || weight_rows / outputs * lanes < enough)) lanes *= 2;
    groups = std::max(1u, workgroup / lanes);
  }
  gpu::Grid grid(const gpu::Device& device, std::uint32_t weight_rows) const {
    return gpu::linear_grid(device, (weight_rows + outputs * groups - 1) / (outputs * groups));
  }
};

// Columns of the hidden values, which are few, and the invocations that share each.
struct LoraSpread {
  std::uint32_t columns, lanes;

  explicit LoraSpread(gpu::AdapterType type) {
    const bool software = type == gpu::AdapterType::software;
    columns = software ? 4 : 1, lanes = software ? 8 : 256;
  }
};

struct LoraParams {
  std::uint32_t rows, columns, inputs, rank;
  float eps;
};

// How nf4_row.wgsl is spread: lanes that hold 16 elements of each row of x, outputs at a time, and how often.
struct RowSpread {
  std::uint32_t subgroup, lanes, outputs, steps;
  std::uint32_t most_rows = 4;  // at a time, by what registers hold and workgroup memory has room for

  // `enough` lanes occupy the adapter; with more of them x is read and sums are added up more often. 0: those of a large GPU.
  RowSpread(const gpu::AdapterInfo& info, std::uint32_t weight_rows, std::uint32_t inputs, std::uint32_t enough)
      : subgroup(info.subgroup_min_size) {
    constexpr std::uint32_t elements = 16, usual = 80 * 1024, most_steps = 8;
    if (enough == 0) enough = usual;
    lanes = (inputs / elements + subgroup - 1) / subgroup * subgroup;
    const std::uint64_t rows = std::uint64_t{weight_rows} * lanes / enough;
    outputs = rows >= 32 ? 8 : 4;
    steps = static_cast<std::uint32_t>(std::clamp<std::uint64_t>((rows + outputs / 2) / outputs, 1, most_steps));
    while (most_rows > 1 && workgroup_bytes() > info.limits.workgroup_storage) most_rows /= 2;
  }
  // Shares of sums and of adapters.
  std::uint32_t workgroup_bytes() const { return 4 * most_rows * ((outputs * steps + 1) * (lanes / subgroup) + 8 * outputs * steps); }
  static bool fits(const gpu::AdapterInfo& info, gpu::AdapterType type, std::uint32_t inputs) {
    return type != gpu::AdapterType::software && info.subgroups && info.subgroup_min_size == info.subgroup_max_size &&
           info.subgroup_min_size >= 8 && (inputs + 15) / 16 + info.subgroup_min_size <= info.limits.workgroup_invocations;
  }
  gpu::Grid grid(const gpu::Device& device, std::uint32_t weight_rows) const {
    return gpu::linear_grid(device, (weight_rows + outputs * steps - 1) / (outputs * steps));
  }
};

struct Variant {
  bool norm = false, plus = false, swiglu = false, lora = false;
  CodeBook codes = CodeBook::nf4;

  gpu::Prelude prelude() const {
    gpu::Prelude result;
    result.constant("NORM", norm).constant("PLUS", plus).constant("SWIGLU", swiglu).constant("LORA", lora);
    return result.text(nf4_codes_text(codes));
  }
  const char* adapters() const { return lora ? "vec_adapters" : "vec_adapters_none"; }
};

gpu::Kernel vec_kernel(gpu::Device& device, const Spread& spread, std::uint32_t rows, const Variant& variant) {
  gpu::Prelude prelude = variant.prelude();
  prelude.constant("ROWS_M", std::bit_ceil(rows)).constant("OUTPUTS", spread.outputs).constant("LANES", spread.lanes);
  prelude.constant("GROUPS", spread.groups);
  return kernel(device, "nf4_vec", prelude,
                {"grid", "nf4", "silu", "vec_params", variant.adapters(), spread.table ? "vec_codes_table" : "vec_codes_select"}, "main");
}

gpu::Kernel row_kernel(gpu::Device& device, const RowSpread& spread, std::uint32_t rows, const Variant& variant) {
  gpu::Prelude prelude = variant.prelude();
  prelude.enable("subgroups").constant("ROWS_M", rows).constant("SUBGROUP", spread.subgroup).constant("LANES", spread.lanes);
  prelude.constant("OUTPUTS", spread.outputs).constant("STEPS", spread.steps);
  return kernel(device, "nf4_row", prelude, {"grid", "subgroup_codes", "subgroup_sums", "silu", "vec_params", variant.adapters()}, "main");
}

void check_input(const VecInput& input) {
  const std::uint32_t rows = input.x.dim(0), inputs = input.x.dim(1);
  check(rows >= 1 && rows <= vec_rows && inputs > 0 && inputs % nf4_block == 0, in_nf4_vec,
        "{} rows of {} values came; 1 to {} rows of a multiple of {} are possible.", rows, inputs, vec_rows, nf4_block);
  expect_shape(input.x, DType::f32, {rows, inputs}, in_nf4_vec, "x");
  if (input.weight) expect_shape(input.weight, DType::f32, {inputs}, in_nf4_vec, "the norm's weight");
}

void check_weight(const Nf4& w, std::uint64_t elements) {
  check(w.packed.bytes() * 2 == elements && w.absmax.size() * nf4_block == elements, in_nf4_vec,
        "{} packed bytes and {} block maxima do not make a weight of {} elements.", w.packed.bytes(), w.absmax.size(), elements);
}

std::uint32_t projections_of(const VecLora& lora, std::uint32_t outputs) {
  return 1 + static_cast<std::uint32_t>(lora.ends[0] < outputs) + static_cast<std::uint32_t>(lora.ends[1] < outputs);
}

// Adds to `params` what the adapters are; the matrices that take the bindings' places, where they are missing any of the others.
std::array<Tensor, 3> set_lora(Nf4VecParams& params, const VecLora& lora, std::uint32_t outputs) {
  params.rank = lora.rank, params.scaling = lora.scaling, params.first_end = lora.ends[0], params.second_end = lora.ends[1];
  std::array<Tensor, 3> b = lora.b;
  Tensor some;
  std::uint32_t begin = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    const std::uint32_t end = lora.ends[i];
    check(begin <= end && end <= outputs, in_nf4_vec, "Projections end at {}, {} and {} of {} outputs.", lora.ends[0], lora.ends[1],
          lora.ends[2], outputs);
    if (b[i]) {
      expect_shape(b[i], DType::f32, {end - begin, lora.rank}, in_nf4_vec, "b");
      params.adapted |= 1u << i;
      some = b[i];
    }
    begin = end;
  }
  check(static_cast<bool>(some), in_nf4_vec, "Hidden values came without an adapter.");
  for (Tensor& matrix : b) {
    if (!matrix) matrix = some;
  }
  params.hidden = projections_of(lora, outputs) * lora.rank;
  expect_shape(lora.h, DType::f32, {params.rows, params.hidden}, in_nf4_vec, "h");
  return b;
}

// `outputs` are those of y, `rows` those of the weight.
struct Job {
  const VecInput& input;
  const Nf4& w;
  const Tensor &y, &plus;
  const VecLora& lora;
  std::uint32_t outputs, rows;
  bool swiglu;
  std::optional<gpu::AdapterType> kernel_for;
  std::uint32_t enough_lanes;
};

void record_job(gpu::Recorder& recorder, const Job& job) {
  auto& device = recorder.device();
  check_input(job.input);
  const std::uint32_t rows = job.input.x.dim(0), inputs = job.input.x.dim(1);
  check_weight(job.w, std::uint64_t{job.rows} * inputs);
  expect_shape(job.y, DType::f32, {rows, job.outputs}, in_nf4_vec, "y");
  if (job.plus) expect_shape(job.plus, DType::f32, {rows, job.outputs}, in_nf4_vec, "plus");
  Nf4VecParams params{.rows = rows, .outputs = job.outputs, .inputs = inputs, .eps = job.input.eps};
  const Variant variant{.norm = static_cast<bool>(job.input.weight), .plus = static_cast<bool>(job.plus), .swiglu = job.swiglu,
                        .lora = static_cast<bool>(job.lora.h), .codes = job.w.codes};
  const Tensor& x = job.input.x;
  const Tensor packed = words_of(job.w);
  // What a variant does without has another tensor in its place, unread.
  std::vector<gpu::Binding> bindings{gpu::read(x), gpu::read(variant.norm ? job.input.weight : x), gpu::write(job.y), gpu::read(packed),
                                     gpu::read(job.w.absmax), gpu::read(variant.plus ? job.plus : x)};
  if (variant.lora) {
    bindings.push_back(gpu::read(job.lora.h));
    for (const Tensor& b : set_lora(params, job.lora, job.rows)) bindings.push_back(gpu::read(b));
  }
  const auto dispatch = [&](const gpu::Kernel& kernel, gpu::Grid grid) {
    recorder.dispatch_bytes(kernel, bindings, std::as_bytes(std::span<const Nf4VecParams, 1>(&params, 1)), grid,
                            {.bytes = static_cast<double>(packed.bytes() + job.w.absmax.bytes()), .flops = 2.0 * rows * job.rows * inputs});
  };
  const auto type = job.kernel_for.value_or(device.info().type);
  if (RowSpread::fits(device.info(), type, inputs)) {
    const RowSpread spread(device.info(), job.rows, inputs, job.enough_lanes);
    for (params.first_row = 0; params.first_row < rows; params.first_row += spread.most_rows) {
      dispatch(row_kernel(device, spread, std::min(spread.most_rows, rows - params.first_row), variant), spread.grid(device, job.rows));
    }
    return;
  }
  const Spread spread(type, rows, job.rows, inputs);
  dispatch(vec_kernel(device, spread, rows, variant), spread.grid(device, job.rows));
}

}  // namespace

void record(gpu::Recorder& recorder, const Nf4Vec& op) {
  const std::uint32_t outputs = op.y.dim(1);
  record_job(recorder, {.input = op.input, .w = op.w, .y = op.y, .plus = op.plus, .lora = op.lora, .outputs = outputs,
                        .rows = outputs, .swiglu = false, .kernel_for = op.kernel_for, .enough_lanes = op.enough_lanes});
}

void record(gpu::Recorder& recorder, const Nf4VecSwiGlu& op) {
  const std::uint32_t outputs = op.y.dim(1);
  record_job(recorder, {.input = op.input, .w = op.w, .y = op.y, .plus = {}, .lora = op.lora, .outputs = outputs,
                        .rows = 2 * outputs, .swiglu = true, .kernel_for = op.kernel_for, .enough_lanes = op.enough_lanes});
}

void record(gpu::Recorder& recorder, const LoraVec& op) {
  auto& device = recorder.device();
  check_input(op.input);
  const std::uint32_t rows = op.input.x.dim(0), inputs = op.input.x.dim(1);
  const auto some = std::find_if(op.a.begin(), op.a.end(), [](const Tensor& a) { return static_cast<bool>(a); });
  check(some != op.a.end(), in_nf4_vec, "There is no adapter to compute hidden values of.");
  std::array<Tensor, 3> a = op.a;
  for (Tensor& matrix : a) {
    if (!matrix) matrix = *some;
    expect_shape(matrix, DType::f32, {op.rank, inputs}, in_nf4_vec, "a");
  }
  const std::uint32_t columns = op.projections * op.rank;
  check(op.projections >= 1 && op.projections <= 3, in_nf4_vec, "{} projections came; 1 to 3 are possible.", op.projections);
  expect_shape(op.h, DType::f32, {rows, columns}, in_nf4_vec, "h");
  const bool norm = static_cast<bool>(op.input.weight);
  const LoraSpread spread(op.kernel_for.value_or(device.info().type));
  gpu::Prelude prelude;
  prelude.constant("ROWS_M", std::bit_ceil(rows)).constant("COLUMNS", spread.columns);
  prelude.constant("LANES", spread.lanes).constant("NORM", norm);
  const Tensor& x = op.input.x;
  recorder.dispatch(kernel(device, "lora_vec", prelude, {"grid"}, "main"),
                    {gpu::read(x), gpu::read(norm ? op.input.weight : x), gpu::write(op.h), gpu::read(a[0]), gpu::read(a[1]),
                     gpu::read(a[2])},
                    LoraParams{.rows = rows, .columns = columns, .inputs = inputs, .rank = op.rank, .eps = op.input.eps},
                    gpu::linear_grid(device, (columns + spread.columns - 1) / spread.columns),
                    {.bytes = 4.0 * columns * inputs, .flops = 2.0 * rows * columns * inputs});
}

}  // namespace nibble
