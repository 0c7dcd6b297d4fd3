#include "nibble/model/matmul_bench.h"

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/base/nf4_table.h"
#include "nibble/base/relative_error.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/pack_rows.h"
#include "nibble/kernels/random_fill.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

constexpr std::uint32_t sampled_rows = 12, sampled_columns = 16;
constexpr std::uint32_t most_splits = 8;  // that there is room for

std::vector<float> floats_of(gpu::Device& device, const Tensor& tensor) {
  if (tensor.dtype() == DType::f32) return device.read<float>(tensor);
  std::vector<float> values;
  for (const std::uint16_t half : device.read<std::uint16_t>(tensor)) values.push_back(f16_to_f32(half));
  return values;
}

// The first, the last, and some between.
std::vector<std::uint32_t> some_of(std::uint32_t count, std::uint32_t samples) {
  std::vector<std::uint32_t> result;
  Rng rng(count);
  for (std::uint32_t i = 0; i < samples; ++i) {
    result.push_back(i == 0 ? 0 : i == 1 ? count - 1 : rng.below(count));
  }
  return result;
}

void fill(gpu::Device& device, const Tensor& tensor, std::uint32_t seed, float deviation = 1.0f) {
  gpu::Recorder recorder(device);
  record(recorder, RandomFill{.x = tensor, .seed = seed, .deviation = deviation});
}

// 32-bit registers of an invocation for sums and for what is on its way to workgroup memory. Beyond these 192 compilers have
// none left for operands and addresses: they take several times as long and spill.
bool has_registers(const MatrixTile& tile) {
  const std::uint32_t sums = tile.part_m * tile.part_n / tile.subgroup;
  const std::uint32_t staged = (tile.block_m + (tile.direct ? 0 : tile.block_n)) * tile.block_k / 2 / tile.invocations();
  return sums + staged <= 192;
}

}  // namespace

std::string_view name_of(const MatmulProblem& problem) {
  if (!problem.joint) return "head";
  switch (*problem.joint) {
    case Joint::qkv: return "qkv";
    case Joint::o: return "o";
    case Joint::gate_up: return "gate_up";
    case Joint::down: return "down";
  }
  return "?";
}

MatmulBench::MatmulBench(gpu::Device& device, const ModelConfig& config, ProductPath path, const MatmulProblem& problem)
    : device_(device), path_(path), problem_(problem) {
  const ProjectionDims dims =
      problem.joint ? joint_dims(config, *problem.joint) : ProjectionDims{config.vocab_size, config.hidden_size};
  outputs_ = dims.out, inputs_ = dims.in;
  const bool nt = problem.layout == MatrixLayout::nt;
  shape_ = {problem.layout, problem.rows, nt ? dims.out : dims.in, nt ? dims.in : dims.out};
  make_weight(device, dims.out, dims.in);
  const Tensor values = device.tensor(DType::f32, {shape_.rows, shape_.inner}, "bench");
  fill(device, values, 1);
  gpu::Recorder recorder(device);
  x_ = path == ProductPath::f32 ? Operand{values, {}}
                                : as_operand(recorder, values, make_operand(device, path, shape_.rows, shape_.inner, "bench"));
  recorder.submit();
  if (path == ProductPath::matrix && problem.lora_rank > 0 && problem.joint) make_adapters(device, config);
  make_result(device);
  find_sums();
}

// From NF4 of random codes, so that rows and tiles hold the same.
void MatmulBench::make_weight(gpu::Device& device, std::uint32_t outputs, std::uint32_t inputs) {
  const std::uint64_t count = std::uint64_t{outputs} * inputs;
  nf4_ = {.packed = device.tensor(DType::u32, {static_cast<std::uint32_t>(count / 8)}, "bench"),
          .absmax = device.tensor(DType::f32, {static_cast<std::uint32_t>(count / nf4_block)}, "bench")};
  fill(device, nf4_.packed, 2);
  fill(device, nf4_.absmax, 3, 0.05f);
  weight_.data = device.tensor(operand_dtype(path_), {outputs, inputs}, "bench");
  gpu::Recorder recorder(device);
  nibble::record(recorder, DequantizeNf4{.w = nf4_, .out = weight_});
  const auto direct = direct_matrix_tile(device.info());
  const std::uint32_t tile = direct ? direct->matrix.m : 0;
  if (path_ != ProductPath::matrix || tile == 0 || outputs % tile || inputs % tile || inputs % tiled_columns || !problem_.joint) return;
  tiled_ = {.data = device.tensor(DType::f16, {outputs, inputs}, "bench"), .scale = 1.0f, .tile = tile,
            .turned = problem_.layout == MatrixLayout::nn};
  nibble::record(recorder, DequantizeNf4{.w = nf4_, .out = tiled_});
}

void MatmulBench::make_adapters(gpu::Device& device, const ModelConfig& config) {
  const bool nt = problem_.layout == MatrixLayout::nt;
  const std::uint32_t rank = (problem_.lora_rank + 15) / 16 * 16;
  const auto width = static_cast<std::uint32_t>(members_of(*problem_.joint).size()) * rank;
  lora_.left = device.tensor(DType::f16, {shape_.rows, width}, "bench");
  lora_.right = nt ? device.tensor(DType::f16, {outputs_, rank}, "bench") : device.tensor(DType::f16, {width, inputs_}, "bench");
  lora_.ends = joint_ends(config, *problem_.joint);
  fill(device, lora_.left, 4);
  fill(device, lora_.right, 5);
}

// As a layer has them (nibble/model/joint_layers.cpp): f16 to what reads f16, else f32, on top of the residual stream where it
// is added to.
void MatmulBench::make_result(gpu::Device& device) {
  const bool nt = problem_.layout == MatrixLayout::nt;
  const bool wide = problem_.joint == Joint::qkv || problem_.joint == Joint::gate_up;
  const bool f16 = path_ == ProductPath::matrix && problem_.joint && wide == nt;
  y_ = device.tensor(f16 ? DType::f16 : DType::f32, {shape_.rows, shape_.columns}, "bench");
  if (f16) y_scale_ = device.tensor(DType::f32, {shape_.rows}, "bench");
  if (nt && problem_.joint && !wide && path_ == ProductPath::matrix) {
    plus_ = device.tensor(DType::f32, {shape_.rows, shape_.columns}, "bench");
  }
  if (path_ != ProductPath::matrix) return;
  const std::uint64_t most = device.info().limits.max_binding / sizeof(float) - 4;
  const std::uint64_t sums = std::min(most, std::uint64_t{most_splits} * shape_.rows * shape_.columns);
  scratch_ = device.tensor(DType::f32, {static_cast<std::uint32_t>(std::min<std::uint64_t>(sums, std::uint64_t{1} << 28))}, "bench");
}

double MatmulBench::bytes() const {
  return static_cast<double>(x_.data.bytes() + weight_.data.bytes() + y_.bytes() + (plus_ ? plus_.bytes() : 0));
}

double MatmulBench::weight_at(std::span<const float> weight, std::uint32_t column, std::uint32_t i) const {
  const bool nt = problem_.layout == MatrixLayout::nt;
  return nt ? weight[std::size_t{column} * inputs_ + i] : weight[std::size_t{i} * inputs_ + column];
}

void MatmulBench::find_sums() {
  host_.rows = some_of(shape_.rows, sampled_rows);
  host_.columns = some_of(shape_.columns, sampled_columns);
  const auto weight = floats_of(device_, weight_.data);
  const auto right = lora_.right ? floats_of(device_, lora_.right) : std::vector<float>{};
  for (const std::uint32_t row : host_.rows) {
    const auto x = floats_of(device_, x_.data.rows(row, row + 1));
    const double scale = x_.scale ? floats_of(device_, x_.scale)[row] : 1.0;
    const auto left = lora_.left ? floats_of(device_, lora_.left.rows(row, row + 1)) : std::vector<float>{};
    for (const std::uint32_t column : host_.columns) {
      double sum = 0;
      for (std::uint32_t i = 0; i < shape_.inner; ++i) sum += double{x[i]} * weight_at(weight, column, i);
      if (lora_.left && problem_.layout == MatrixLayout::nt) {
        const std::uint32_t rank = lora_.right.dim(1);
        const std::uint32_t from = ((column >= lora_.ends[0]) + (column >= lora_.ends[1])) * rank;
        for (std::uint32_t i = 0; i < rank; ++i) sum += double{left[from + i]} * right[std::size_t{column} * rank + i];
      } else if (lora_.left) {
        for (std::uint32_t i = 0; i < left.size(); ++i) sum += double{left[i]} * right[std::size_t{i} * inputs_ + column];
      }
      host_.sums.push_back(sum * scale);
    }
  }
}

std::span<const std::uint32_t> MatmulBench::ends() const {
  if (!lora_.left || problem_.layout == MatrixLayout::nn) return {};
  return lora_.ends;
}

MatrixPlan MatmulBench::own_plan(bool tiled) const { return matrix_plan(device_, shape_, tiled, ends()); }

bool MatmulBench::allows(const MatrixTile& tile) const {
  const auto all = ends();
  return std::all_of(all.begin(), all.end(), [&](std::uint32_t end) { return end % tile.block_n == 0 || end == shape_.columns; });
}

void MatmulBench::record(gpu::Recorder& recorder, const MatrixPlan* plan) {
  const bool nt = problem_.layout == MatrixLayout::nt;
  if (!plan) {
    if (nt) return nibble::record(recorder, ProductNT{.path = path_, .x = x_, .w = weight_, .y = y_});
    return nibble::record(recorder, ProductNN{.path = path_, .x = x_, .w = weight_, .y = y_});
  }
  check(!plan->tile.direct || tiled_.data, "bench matmul", "There is no weight in tiles.");
  const MatrixProduct product{.x = x_, .w = plan->tile.direct ? tiled_ : weight_, .y = y_, .y_scale = y_scale_, .plus = plus_,
                              .lora = lora_, .scratch = scratch_, .tile = plan->tile, .splits = plan->splits, .wave = plan->wave};
  if (nt) return record_matrix_nt(recorder, product);
  record_matrix_nn(recorder, product);
}

void MatmulBench::record_decoding(gpu::Recorder& recorder, bool tiled) {
  if (decodes()) nibble::record(recorder, DequantizeNf4{.w = nf4_, .out = tiled ? tiled_ : weight_});
}

void MatmulBench::run(const MatrixPlan* plan) {
  gpu::Recorder recorder(device_);
  recorder.clear(y_);
  record(recorder, plan);
  recorder.submit();
}

std::vector<float> MatmulBench::row_of_result(std::uint32_t row) {
  auto values = floats_of(device_, y_.rows(row, row + 1));
  if (!y_scale_) return values;
  const float scale = device_.read<float>(y_scale_)[row];
  for (float& value : values) value *= scale;
  return values;
}

double MatmulBench::error(const MatrixPlan* plan) {
  run(plan);
  reference_.clear();
  std::vector<float> got;
  for (const std::uint32_t row : host_.rows) {
    reference_.push_back(row_of_result(row));
    for (const std::uint32_t column : host_.columns) got.push_back(reference_.back()[column]);
  }
  return relative_error(got, host_.sums);
}

double MatmulBench::difference(const MatrixPlan& plan) {
  run(&plan);
  double worst = 0;
  for (std::size_t i = 0; i < host_.rows.size(); ++i) {
    const double error = relative_error(row_of_result(host_.rows[i]), reference_[i]);
    worst = std::isnan(error) ? error : std::max(worst, error);
    if (std::isnan(worst)) break;
  }
  return worst;
}

double MatmulBench::allowed_error() const {
  double sums = std::sqrt(shape_.inner) * 0x1p-23;
  if (path_ == ProductPath::matrix) {
    const double additions = static_cast<double>(shape_.inner) / default_matrix_tile(device_.info())->matrix.k;
    sums = std::max(sums, additions * 0x1p-24);
  }
  return sums + (y_scale_ ? 0x1p-11 : 0.0);
}

std::vector<MatrixTile> candidate_tiles(const gpu::AdapterInfo& info, bool tiled) {
  const auto own = tiled ? direct_matrix_tile(info) : default_matrix_tile(info);
  if (!own) return {};
  std::vector<MatrixTile> tiles{*own};
  struct Size {
    std::uint32_t m, n, k, part_m, part_n;
  };
  const bool software = info.type == gpu::AdapterType::software;
  const std::vector<Size> staged{{128, 128, 32, 64, 64}, {128, 128, 64, 64, 32}, {128, 64, 64, 64, 32},  {128, 64, 64, 64, 64},
                                 {64, 128, 64, 64, 32},  {64, 128, 64, 64, 64},  {256, 128, 32, 64, 64}, {128, 256, 32, 64, 64},
                                 {64, 64, 64, 32, 32}};
  const std::vector<Size> direct{{64, 256, 64, 64, 64},  {64, 256, 128, 64, 64},  {128, 256, 64, 64, 64}, {128, 128, 64, 64, 64},
                                 {128, 128, 128, 64, 64}, {64, 128, 128, 64, 64}, {64, 128, 64, 64, 64},  {32, 256, 128, 32, 64},
                                 {64, 512, 64, 64, 64},   {64, 256, 64, 64, 32},  {128, 128, 64, 64, 32}};
  const std::vector<Size> small = tiled ? std::vector<Size>{{32, 32, 16, 16, 16}} : std::vector<Size>{{16, 32, 16, 16, 16}};
  for (const gpu::MatrixConfig& matrix : info.matrix_configs) {
    if (matrix.m != own->matrix.m || matrix.k != own->matrix.k) continue;
    for (const Size& size : software ? small : tiled ? direct : staged) {
      MatrixTile tile{matrix, own->subgroup, size.m, size.n, size.k, size.part_m, size.part_n};
      tile.direct = tiled;
      if (suits(info, tile) && has_registers(tile)) tiles.push_back(tile);
    }
  }
  return tiles;
}

std::string describe(const MatrixPlan& plan) {
  const MatrixTile& t = plan.tile;
  return fmt::format("{}{}x{}x{} by {}x{}{}{}{}", t.direct ? "direct " : "", t.block_m, t.block_n, t.block_k, t.part_m, t.part_n,
                     t.matrix.n == t.matrix.m ? "" : fmt::format(" of {}x{}x{}", t.matrix.m, t.matrix.n, t.matrix.k),
                     t.band == 4 ? "" : fmt::format(", bands of {}", t.band),
                     plan.splits == 1 ? "" : fmt::format(", {} splits{}", plan.splits, plan.wave == 0 ? "" : " of the last wave"));
}

}  // namespace nibble
