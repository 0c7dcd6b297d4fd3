#include "nibble/kernels/lora_matrix.h"

#include "nibble/base/error.h"
#include "nibble/kernels/lora_gradients_sum.h"
#include "nibble/kernels/lora_matrix_plan.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

using detail::lora_down_problem;
using detail::lora_plan;
using detail::lora_up_problem;
using detail::lora_with;
using detail::LoraParams;
using detail::LoraPass;
using detail::LoraPlan;
using detail::LoraProblem;
using detail::LoraSum;
using detail::LoraText;

constexpr std::uint32_t lane = 8;  // elements of the 16 bytes that operands are read in
constexpr float hidden_unit = 0x1p-12f, gradient_unit = 0x1p6f;

struct RowsSumParams {
  std::array<std::uint32_t, 4> starts;
  std::uint32_t count, row_vectors, width, padded_width, padded_rows;
  float factor;
  std::array<std::uint32_t, 2> padding;
};

std::uint32_t groups(std::uint64_t count, std::uint32_t size) {
  return static_cast<std::uint32_t>((count + size - 1) / size);
}

float keep_scale(const LoraGroupDropout& dropout) { return static_cast<float>(1 / (1 - double{dropout.probability})); }

gpu::Kernel matrix_kernel(gpu::Device& device, const LoraPlan& plan) {
  constexpr std::array labels{"lora_matrix:down", "lora_matrix:up_backward", "lora_matrix:gradients",
                              "lora_matrix:backward"};
  const LoraText& text = plan.text;
  const char* label = labels.at(static_cast<std::size_t>(text.pass));
  const auto key = fmt::format("{} {} {} {}", label, text.narrow, text.whole_steps, text.dropout);
  return device.kernel(key, label, "main", [&] {
    return detail::lora_matrix_text(plan.tile, text, detail::embedded_wgsl().at("lib/random"));
  });
}

gpu::Work work_of(const LoraPlan& plan, const LoraProblem& problem) {
  double columns = 0;
  for (const auto& [begin, end] : problem.ranges) columns += (end - begin) * double{lane};
  return {.bytes = plan.params.rows * columns * 2 + static_cast<double>(plan.scratch) * 4,
          .flops = (plan.text.pass == LoraPass::backward ? 4.0 : 2.0) * plan.params.rows * columns * plan.params.width};
}

std::vector<gpu::RowRange> row_slices(const gpu::Device& device, const LoraGroupShape& shape, std::uint32_t rows,
                                      std::uint32_t columns) {
  // Partial sums are f32, in rows padded to 64 at most.
  return gpu::binding_slices(device, rows, {std::uint64_t{columns} * 2, (shape.width() + 64u) * std::uint64_t{8}, 4});
}

Tensor scratch_part(const Tensor& scratch, std::uint64_t first, std::uint64_t elements) {
  check(scratch && scratch.dtype() == DType::f32 && scratch.size() >= first + elements, "lora_matrix",
        "The scratch of {} elements is smaller than the {} needed.", scratch ? scratch.size() : 0, first + elements);
  return scratch.part(first, {static_cast<std::uint32_t>(elements)});
}

void check_rows(const LoraGroup& group, const Tensor& x, std::uint32_t columns, const Tensor& h) {
  check(x.dtype() == DType::f16 && h.dtype() == DType::f16 && x.dim(1) == columns && h.dim(1) == group.shape.width() &&
            h.dim(0) == x.dim(0),
        "lora_matrix", "Shapes do not fit: {} rows of {} columns and h {} for rank {}.", x.shape_text(), columns,
        h.shape_text(), group.shape.rank);
}

// h = x w * factor.
struct Rows {
  LoraProblem problem;
  const Tensor &x, &w, &h, &scratch;
  LoraGroupDropout dropout;
};

// The second pass of h = x w: `partial` holds parts of so many rows.
void record_rows_sum(gpu::Recorder& recorder, const LoraPlan& plan, const Tensor& partial, std::uint32_t padded_rows,
                     std::uint32_t parts, const Tensor& h, float factor) {
  auto& device = recorder.device();
  const auto& segments = plan.params.segments;
  const RowsSumParams sum{.starts = {0, segments[1][2], segments[2][2], parts},
                          .count = static_cast<std::uint32_t>(h.size() / lane),
                          .row_vectors = h.dim(1) / lane,
                          .width = plan.params.width,
                          .padded_width = plan.params.narrow_blocks * plan.text.narrow,
                          .padded_rows = padded_rows,
                          .factor = factor,
                          .padding = {}};
  // A processor gains nothing from sharing; two there, so that tests see it.
  const std::uint32_t shares = device.info().type == gpu::AdapterType::software ? 2 : 8;
  recorder.dispatch(kernel(device, "lora_rows_sum", gpu::Prelude().enable("f16").constant("SHARES", shares), {"grid"}),
                    {gpu::read(partial), gpu::write(h)}, sum, gpu::linear_grid(device, groups(sum.count, 32)),
                    {.bytes = static_cast<double>(partial.bytes() + h.bytes())});
}

void record_rows(gpu::Recorder& recorder, const LoraGroupShape& shape, const Rows& op) {
  auto& device = recorder.device();
  for (const auto range : row_slices(device, shape, op.x.dim(0), op.x.dim(1))) {
    LoraPlan plan = lora_plan(device, op.problem, range.end - range.begin);
    set_dropout(plan, op.dropout, range.begin);
    LoraParams& p = plan.params;
    p.x_stride = op.x.dim(1) / lane;
    p.w_stride = op.w.dim(1) / lane;
    const Tensor h = op.h.rows(range.begin, range.end);
    const Tensor partial = scratch_part(op.scratch, 0, std::max<std::uint64_t>(plan.scratch, 4));
    if (p.parts > 0) {
      recorder.dispatch(matrix_kernel(device, plan),
                        {gpu::read(op.x.rows(range.begin, range.end)), gpu::read(op.w), gpu::write(partial)}, p,
                        gpu::linear_grid(device, plan.workgroups()), work_of(plan, op.problem));
    }
    record_rows_sum(recorder, plan, partial, p.blocks * plan.tile.block, p.parts, h,
                    hidden_unit * keep_scale(op.dropout));
  }
}

}  // namespace

void record(gpu::Recorder& recorder, const LoraDownMatrix& op) {
  const LoraGroupShape& shape = op.group.shape;
  check_rows(op.group, op.x, shape.inputs, op.h);
  record_rows(recorder, shape,
              {lora_down_problem(shape, op.dropout.probability > 0), op.x, op.group.a, op.h, op.scratch, op.dropout});
}

namespace {

// What gradients a pass over columns adds up; sums wait in `sums`.
struct Columns {
  LoraProblem problem;
  const Operand& x;
  const Tensor& narrow;
  const Tensor& other_scale;
  LoraSum sum;
  LoraGroupDropout dropout;
};

// Where partial sums lie in the scratch: those of db, of da, and of dh.
struct Room {
  std::uint32_t da = 0, dh = 0;
  std::uint64_t size = 0;
};

// Records of one group's backward, with what waits to be added up.
class Backward {
 public:
  Backward(gpu::Recorder& recorder, const LoraGroup& group, const Tensor& scratch, const Room& room)
      : recorder_(recorder), group_(group), scratch_(scratch), room_(room) {}

  void columns(const Columns& op);
  // dh, and what `op` adds up, from one reading of dy.
  void both(const Columns& op, const Tensor& dh);
  void add_up();

 private:
  void dispatch(const Columns& op, LoraPlan& plan, const gpu::RowRange& range);

  gpu::Recorder& recorder_;
  const LoraGroup& group_;
  const Tensor& scratch_;
  Room room_;
  std::vector<LoraSum> waiting_;
};

void Backward::add_up() {
  if (waiting_.empty()) return;
  std::uint64_t end = 0;
  for (const LoraSum& sum : waiting_) end = std::max(end, (sum.first + sum.plan.scratch + 3) / 4 * 4);
  detail::record_sums(recorder_, group_.shape, scratch_part(scratch_, 0, end), waiting_);
  waiting_.clear();
}

void Backward::dispatch(const Columns& op, LoraPlan& plan, const gpu::RowRange& range) {
  // What still waits in this place goes first.
  if (std::any_of(waiting_.begin(), waiting_.end(), [&](const LoraSum& sum) { return sum.first == op.sum.first; }))
    add_up();
  auto& device = recorder_.device();
  LoraParams& p = plan.params;
  p.x_stride = op.x.data.dim(1) / lane;
  p.w_stride = op.narrow.dim(1) / lane;
  p.rows_at = room_.dh;
  const auto cut = [&](const Tensor& tensor) { return gpu::read(tensor.rows(range.begin, range.end)); };
  const auto entry = matrix_kernel(device, plan);
  const auto grid = gpu::linear_grid(device, plan.workgroups());
  if (plan.text.pass == LoraPass::backward) {
    const Tensor sums = scratch_part(scratch_, 0, room_.dh + plan.row_sums);
    recorder_.dispatch(
        entry,
        {cut(op.x.data), cut(op.narrow), gpu::write(sums), cut(op.x.scale), cut(op.other_scale), gpu::read(group_.b)},
        p, grid, work_of(plan, op.problem));
  } else {
    const Tensor sums = scratch_part(scratch_, op.sum.first, plan.scratch);
    recorder_.dispatch(entry, {cut(op.x.data), cut(op.narrow), gpu::write(sums), cut(op.x.scale), cut(op.other_scale)},
                       p, grid, work_of(plan, op.problem));
  }
  LoraSum sum = op.sum;
  sum.plan = plan;
  waiting_.push_back(std::move(sum));
}

void Backward::columns(const Columns& op) {
  for (const auto range : row_slices(recorder_.device(), group_.shape, op.x.data.dim(0), op.x.data.dim(1))) {
    LoraPlan plan = lora_plan(recorder_.device(), op.problem, range.end - range.begin);
    if (plan.scratch == 0) return;
    set_dropout(plan, op.dropout, range.begin);
    dispatch(op, plan, range);
  }
}

// Rows of which `backward` takes so many at once that the sums of `up` are no more than 64 MB.
std::vector<gpu::RowRange> backward_slices(const gpu::Device& device, const LoraGroupShape& shape, std::uint32_t rows) {
  const std::uint32_t blocks =
      lora_plan(device, lora_with(lora_up_problem(shape, {true, true, true}), LoraPass::backward), 1).params.blocks;
  const std::uint32_t most = std::max(1u, (1u << 18) / (blocks * shape.padded_rank())) * 64;
  std::vector<gpu::RowRange> slices;
  for (const auto range : row_slices(device, shape, rows, shape.all_outputs())) {
    for (std::uint32_t begin = range.begin; begin < range.end; begin += most) {
      slices.push_back({begin, std::min(range.end, begin + most)});
    }
  }
  return slices;
}

void Backward::both(const Columns& op, const Tensor& dh) {
  for (const auto range : backward_slices(recorder_.device(), group_.shape, dh.dim(0))) {
    LoraPlan plan = lora_plan(recorder_.device(), op.problem, range.end - range.begin);
    if (plan.params.blocks > 0) dispatch(op, plan, range);
    const Tensor rows = scratch_part(scratch_, room_.dh, std::max<std::uint64_t>(plan.row_sums, 4));
    record_rows_sum(recorder_, plan, rows, plan.params.padded_rows, plan.params.blocks, dh.rows(range.begin, range.end),
                    hidden_unit);
  }
}

enum class For { these_rows, up_to_these };

Room room_of(const gpu::Device& device, const LoraGroupShape& shape, const std::array<bool, 3>& adapted, bool dropout,
             std::uint32_t rows, For what = For::these_rows) {
  const auto aligned = [](std::uint64_t elements) { return (elements + 63) / 64 * 64; };
  std::uint64_t db = 0, da = 0, dh = 4;
  const auto consider = [&](std::uint64_t& most, const LoraProblem& problem, const std::vector<gpu::RowRange>& slices) {
    for (const auto range : slices) {
      const LoraPlan plan = lora_plan(device, problem, range.end - range.begin);
      most = std::max(most, aligned(what == For::these_rows ? plan.scratch : plan.most_scratch));
      dh = std::max(dh, plan.row_sums);
    }
  };
  const bool once = detail::lora_reads_once(device, shape);
  const auto slices =
      once ? backward_slices(device, shape, rows) : row_slices(device, shape, rows, shape.all_outputs());
  const LoraProblem up = lora_up_problem(shape, adapted), down = lora_down_problem(shape, dropout);
  consider(db, lora_with(up, once ? LoraPass::backward : LoraPass::gradients), slices);
  consider(da, lora_with(down, LoraPass::gradients), row_slices(device, shape, rows, shape.inputs));
  // In one place where they do not fit side by side into a binding.
  const bool fit = (db + da + dh) * 4 <= device.info().limits.max_binding - 16;
  Room room{.da = static_cast<std::uint32_t>(fit ? db : 0), .dh = 0};
  room.dh = static_cast<std::uint32_t>(fit ? db + da : std::max(db, da));
  room.size = room.dh + dh;
  // Fewer rows may still fit side by side.
  if (!fit && what == For::up_to_these) room.size = std::max(room.size, device.info().limits.max_binding / 4);
  return room;
}

std::array<float, 3> times(std::array<float, 3> factors, float factor) {
  for (float& each : factors) each *= factor;
  return factors;
}

void check_targets(const LoraBackwardMatrix& op) {
  const LoraGroupShape& shape = op.group.shape;
  for (std::size_t i = 0; i < shape.outputs.size(); ++i) {
    const Tensor &da = op.da[i], &db = op.db[i];
    check(static_cast<bool>(da) == op.group.adapted[i] && static_cast<bool>(db) == op.group.adapted[i], "lora_matrix",
          "Projection {} of a group has gradients but no adapter, or an adapter but no gradients.", i);
    if (!da) continue;
    check(da.dtype() == DType::f32 && db.dtype() == DType::f32 && da.dim(0) == shape.rank &&
              da.dim(1) == shape.inputs && db.dim(0) == shape.outputs[i] && db.dim(1) == shape.rank,
          "lora_matrix", "Gradients {} and {} do not fit rank {}, {} inputs and {} outputs.", da.shape_text(),
          db.shape_text(), shape.rank, shape.inputs, shape.outputs[i]);
  }
}

}  // namespace

struct LoraBackward::State {
  State(gpu::Recorder& recorder, const LoraBackwardMatrix& given)
      : op(given),
        dropout(op.dropout.probability > 0),
        room(room_of(recorder.device(), op.group.shape, op.group.adapted, dropout, op.h.dim(0))),
        records(recorder, op.group, op.scratch, room) {}

  LoraBackwardMatrix op;
  bool dropout;
  Room room;
  Backward records;
};

LoraBackward::LoraBackward(gpu::Recorder& recorder, const LoraBackwardMatrix& given) {
  const LoraGroupShape& shape = given.group.shape;
  check_rows(given.group, given.x.data, shape.inputs, given.h);
  check_rows(given.group, given.dy.data, shape.all_outputs(), given.dh);
  check_targets(given);
  state_ = std::make_unique<State>(recorder, given);
  const LoraBackwardMatrix& op = state_->op;
  const LoraProblem up = lora_up_problem(shape, op.group.adapted);
  const bool once = detail::lora_reads_once(recorder.device(), shape);
  // The hidden values are h * 2^6 * x.scale; their gradients are dh * 2^6 * dy.scale * weight_scale, as b holds the scaling.
  const Columns db{.problem = lora_with(up, once ? LoraPass::backward : LoraPass::gradients),
                   .x = op.dy,
                   .narrow = op.h,
                   .other_scale = op.x.scale,
                   .sum = {.first = 0,
                           .targets = op.db,
                           .n_stride = shape.rank,
                           .c_stride = 1,
                           .factors = times(op.group.scaling, gradient_unit)},
                   .dropout = {}};
  if (once) {
    state_->records.both(db, op.dh);
  } else {
    record_rows(recorder, shape, {up, op.dy.data, op.group.b, op.dh, op.scratch, {}});
    state_->records.columns(db);
  }
}

LoraBackward::~LoraBackward() = default;

void LoraBackward::finish() {
  const LoraBackwardMatrix& op = state_->op;
  const LoraGroupShape& shape = op.group.shape;
  state_->records.columns({.problem = lora_with(lora_down_problem(shape, state_->dropout), LoraPass::gradients),
                           .x = op.x,
                           .narrow = op.dh,
                           .other_scale = op.dy.scale,
                           .sum = {.first = state_->room.da,
                                   .targets = op.da,
                                   .n_stride = 1,
                                   .c_stride = shape.inputs,
                                   .factors = times({1.0f, 1.0f, 1.0f}, gradient_unit * op.group.weight_scale * keep_scale(op.dropout))},
                           .dropout = op.dropout});
  state_->records.add_up();
}

void record(gpu::Recorder& recorder, const LoraBackwardMatrix& op) { LoraBackward(recorder, op).finish(); }

bool lora_matrix_fits(const gpu::Device& device, const LoraGroupShape& shape) {
  const auto multiple = [](std::uint32_t count) { return count % lane == 0; };
  return multiple(shape.inputs) && std::all_of(shape.outputs.begin(), shape.outputs.end(), multiple) &&
         shape.rank > 0 && detail::lora_tile(device.info(), LoraPass::gradients).has_value();
}

std::uint64_t lora_matrix_scratch(const gpu::Device& device, const LoraGroupShape& shape, std::uint32_t rows) {
  std::uint64_t most = 4;
  const auto consider = [&](const LoraProblem& problem, std::uint32_t columns) {
    for (const auto range : row_slices(device, shape, rows, columns)) {
      most = std::max(most, lora_plan(device, problem, range.end - range.begin).most_scratch);
    }
  };
  for (const bool dropout : {false, true}) {
    consider(lora_down_problem(shape, dropout), shape.inputs);
    // Whichever projections have an adapter: the fewer, the finer their parts.
    for (unsigned some = 1; some < 1u << shape.outputs.size(); ++some) {
      const std::array<bool, 3> adapted{(some & 1) != 0, (some & 2) != 0, (some & 4) != 0};
      if (!detail::lora_reads_once(device, shape)) consider(lora_up_problem(shape, adapted), shape.all_outputs());
      most = std::max(most, room_of(device, shape, adapted, dropout, rows, For::up_to_these).size);
    }
  }
  return most;
}

}  // namespace nibble
