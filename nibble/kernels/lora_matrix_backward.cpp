#include "nibble/base/error.h"
#include "nibble/kernels/lora_gradients_sum.h"
#include "nibble/kernels/lora_matrix_parts.h"

#include <algorithm>
#include <utility>

namespace nibble {

using detail::lora_down_problem;
using detail::lora_lane;
using detail::lora_plan;
using detail::lora_reads_once;
using detail::lora_row_slices;
using detail::lora_up_problem;
using detail::lora_with;
using detail::LoraParams;
using detail::LoraPass;
using detail::LoraPlan;
using detail::LoraProblem;
using detail::LoraSum;
using detail::scratch_part;

namespace {

// Where bindings may begin on every adapter.
constexpr std::uint64_t alignment = 64;  // elements

std::uint64_t aligned(std::uint64_t elements) { return (elements + alignment - 1) / alignment * alignment; }

}  // namespace

struct LoraSums::State {
  std::vector<LoraSum> waiting;
  Tensor scratch;

  // Elements of the scratch up to which something waits.
  std::uint64_t end() const {
    std::uint64_t end = 0;
    for (const LoraSum& sum : waiting) end = std::max(end, aligned(sum.first + sum.plan.scratch));
    return end;
  }
  void add_up(gpu::Recorder& recorder) {
    if (waiting.empty()) return;
    detail::record_sums(recorder, scratch_part(scratch, 0, end()), waiting);
    waiting.clear();
  }
  // What lies where this one goes, or cannot go with it, is added up before.
  void make_way(gpu::Recorder& recorder, std::uint32_t rank, std::uint64_t first, std::uint64_t elements) {
    const auto parts = [&](const LoraSum& sum) {
      return sum.rank != rank || (sum.first < first + elements && first < sum.first + sum.plan.scratch);
    };
    if (waiting.size() == detail::most_lora_sums || std::any_of(waiting.begin(), waiting.end(), parts)) add_up(recorder);
  }
};

LoraSums::LoraSums() : state_(std::make_unique<State>()) {}
LoraSums::~LoraSums() = default;
void LoraSums::add_up(gpu::Recorder& recorder) { state_->add_up(recorder); }
void LoraSums::forget() { state_->waiting.clear(); }

namespace {

constexpr float gradient_unit = 0x1p6f;

// What gradients a pass over columns adds up; sums wait in `sums`.
struct Columns {
  LoraProblem problem;
  const Operand& x;
  const Tensor& narrow;
  const Tensor& other_scale;
  LoraSum sum;
  LoraGroupDropout dropout;
};

// Elements of the scratch that partial sums take: of db, of da, and of dh.
struct Sizes {
  std::uint64_t db = 0, da = 0, dh = alignment;
  std::uint64_t apart() const { return db + da + dh; }
  std::uint64_t in_turns() const { return std::max(db, da) + dh; }
};

// Where these lie.
struct Room {
  std::uint32_t db = 0, da = 0, dh = 0;
};

// Those of a scratch that one binding holds.
std::uint64_t most_in_binding(const gpu::Device& device) { return (device.info().limits.max_binding - 16) / sizeof(float); }

// Behind what waits, where there is room for that; dh is added up at once, and lies at the end. Where db and da do not fit side by
// side they have one place in turn.
Room place(gpu::Recorder& recorder, LoraSums::State& sums, const Tensor& scratch, const Sizes& sizes) {
  const std::uint64_t all = scratch ? std::min(scratch.size(), most_in_binding(recorder.device())) : 0;
  check(sizes.in_turns() <= all, "lora_matrix", "The scratch of {} elements is smaller than the {} needed.", all, sizes.in_turns());
  const std::uint64_t dh = (all - sizes.dh) / alignment * alignment;
  const bool other = sums.scratch && (sums.scratch.buffer() != scratch.buffer() || sums.scratch.offset() != scratch.offset());
  if (other || sums.end() + sizes.db + sizes.da > dh) sums.add_up(recorder);
  sums.scratch = scratch;
  const std::uint64_t db = sums.end();
  return {.db = static_cast<std::uint32_t>(db), .da = static_cast<std::uint32_t>(db + sizes.db + sizes.da <= dh ? db + sizes.db : db),
          .dh = static_cast<std::uint32_t>(dh)};
}

// Records of one group's backward, with what waits to be added up.
class Backward {
 public:
  Backward(gpu::Recorder& recorder, const LoraGroup& group, const Tensor& scratch, const Room& room, LoraSums::State& sums)
      : recorder_(recorder), group_(group), scratch_(scratch), room_(room), sums_(sums) {}

  void columns(const Columns& op);
  // What dh is the sum of, and what `op` adds up, from one reading of dy.
  LoraRowsSum both(const Columns& op, const Tensor& dh);
  void add_up() { sums_.add_up(recorder_); }
  gpu::Recorder& recorder() { return recorder_; }

 private:
  void dispatch(const Columns& op, LoraPlan& plan, const gpu::RowRange& range);

  gpu::Recorder& recorder_;
  const LoraGroup& group_;
  const Tensor& scratch_;
  Room room_;
  LoraSums::State& sums_;
};

void Backward::dispatch(const Columns& op, LoraPlan& plan, const gpu::RowRange& range) {
  const std::uint32_t first = op.sum.first;
  sums_.make_way(recorder_, group_.shape.rank, first, plan.scratch);
  auto& device = recorder_.device();
  LoraParams& p = plan.params;
  p.x_stride = op.x.data.dim(1) / lora_lane;
  p.w_stride = op.narrow.dim(1) / lora_lane;
  p.rows_at = room_.dh - first;
  const auto cut = [&](const Tensor& tensor) { return gpu::read(tensor.rows(range.begin, range.end)); };
  const auto entry = lora_kernel(device, plan);
  const auto grid = gpu::linear_grid(device, plan.workgroups());
  const bool backward = plan.text.pass == LoraPass::backward;
  const Tensor partial = scratch_part(scratch_, first, backward ? p.rows_at + plan.row_sums : plan.scratch);
  std::vector<gpu::Binding> bindings{cut(op.x.data), cut(op.narrow), gpu::write(partial), cut(op.x.scale), cut(op.other_scale)};
  if (backward) bindings.push_back(gpu::read(group_.b));
  recorder_.dispatch_bytes(entry, bindings, std::as_bytes(std::span(&p, 1)), grid, lora_work(plan, op.problem));
  LoraSum sum = op.sum;
  sum.plan = plan;
  sum.rank = group_.shape.rank;
  sum.padded_rank = group_.shape.padded_rank();
  sums_.waiting.push_back(std::move(sum));
}

void Backward::columns(const Columns& op) {
  for (const auto range : lora_row_slices(recorder_.device(), group_.shape, op.x.data.dim(0), op.x.data.dim(1))) {
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
  for (const auto range : lora_row_slices(device, shape, rows, shape.all_outputs())) {
    for (std::uint32_t begin = range.begin; begin < range.end; begin += most) {
      slices.push_back({begin, std::min(range.end, begin + most)});
    }
  }
  return slices;
}

LoraRowsSum Backward::both(const Columns& op, const Tensor& dh) {
  LoraRowsSum sum;
  for (const auto range : backward_slices(recorder_.device(), group_.shape, dh.dim(0))) {
    LoraPlan plan = lora_plan(recorder_.device(), op.problem, range.end - range.begin);
    if (sum.h) record(recorder_, sum);
    if (plan.params.blocks > 0) dispatch(op, plan, range);
    const Tensor rows = scratch_part(scratch_, room_.dh, std::max<std::uint64_t>(plan.row_sums, 4));
    sum = detail::rows_sum_of(plan, rows, plan.params.padded_rows, plan.params.blocks, dh.rows(range.begin, range.end), detail::lora_hidden_unit);
  }
  return sum;
}

enum class For { these_rows, up_to_these };

Sizes sizes_of(const gpu::Device& device, const LoraGroupShape& shape, const std::array<bool, 3>& adapted, bool dropout,
               std::uint32_t rows, For what = For::these_rows) {
  Sizes sizes;
  const auto consider = [&](std::uint64_t& most, const LoraProblem& problem, const std::vector<gpu::RowRange>& slices) {
    for (const auto range : slices) {
      const LoraPlan plan = lora_plan(device, problem, range.end - range.begin);
      most = std::max(most, aligned(what == For::these_rows ? plan.scratch : plan.most_scratch));
      sizes.dh = std::max(sizes.dh, aligned(plan.row_sums));
    }
  };
  const bool once = lora_reads_once(device, shape);
  const auto slices = once ? backward_slices(device, shape, rows) : lora_row_slices(device, shape, rows, shape.all_outputs());
  const LoraProblem up = lora_up_problem(shape, adapted), down = lora_down_problem(shape, dropout);
  consider(sizes.db, lora_with(up, once ? LoraPass::backward : LoraPass::gradients), slices);
  consider(sizes.da, lora_with(down, LoraPass::gradients), lora_row_slices(device, shape, rows, shape.inputs));
  return sizes;
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
        sums(op.sums ? *op.sums->state_ : *own.state_),
        room(place(recorder, sums, op.scratch, sizes_of(recorder.device(), op.group.shape, op.group.adapted, dropout, op.h.dim(0)))),
        records(recorder, op.group, op.scratch, room, sums) {}

  LoraBackwardMatrix op;
  bool dropout;
  std::optional<LoraRowsSum> rows;  // not recorded yet
  LoraSums own;  // where none are given
  LoraSums::State& sums;
  Room room;
  Backward records;
};

LoraBackward::LoraBackward(gpu::Recorder& recorder, const LoraBackwardMatrix& given) {
  const LoraGroupShape& shape = given.group.shape;
  detail::check_lora_rows(given.group, given.x.data, shape.inputs, given.h);
  detail::check_lora_rows(given.group, given.dy.data, shape.all_outputs(), given.dh);
  check_targets(given);
  state_ = std::make_unique<State>(recorder, given);
  const LoraBackwardMatrix& op = state_->op;
  const LoraProblem up = lora_up_problem(shape, op.group.adapted);
  const bool once = lora_reads_once(recorder.device(), shape);
  // The hidden values are h * 2^6 * x.scale; their gradients are dh * 2^6 * dy.scale * weight_scale, as b holds the scaling.
  const Columns db{.problem = lora_with(up, once ? LoraPass::backward : LoraPass::gradients),
                   .x = op.dy,
                   .narrow = op.h,
                   .other_scale = op.x.scale,
                   .sum = {.first = state_->room.db,
                           .targets = op.db,
                           .n_stride = shape.rank,
                           .c_stride = 1,
                           .factors = times(op.group.scaling, gradient_unit)},
                   .dropout = {}};
  if (once) {
    state_->rows = state_->records.both(db, op.dh);
  } else {
    state_->sums.add_up(recorder);  // such rows have the whole scratch
    record(recorder, detail::record_rows(recorder, shape, {up, op.dy.data, op.group.b, op.dh, op.scratch, {}}));
    state_->records.columns(db);
  }
}

LoraBackward::~LoraBackward() = default;

std::optional<LoraRowsSum> LoraBackward::take_rows() { return std::exchange(state_->rows, std::nullopt); }

void LoraBackward::finish() {
  if (const auto rows = take_rows()) record(state_->records.recorder(), *rows);
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
                                   .factors = times({1.0f, 1.0f, 1.0f}, gradient_unit * op.group.weight_scale * detail::keep_scale(op.dropout))},
                           .dropout = op.dropout});
  if (!op.sums) state_->records.add_up();
}

void record(gpu::Recorder& recorder, const LoraBackwardMatrix& op) { LoraBackward(recorder, op).finish(); }

std::uint64_t lora_matrix_scratch(const gpu::Device& device, const LoraGroupShape& shape, std::uint32_t rows) {
  std::uint64_t most = 4;
  const auto consider = [&](const LoraProblem& problem, std::uint32_t columns) {
    for (const auto range : lora_row_slices(device, shape, rows, columns)) {
      most = std::max(most, lora_plan(device, problem, range.end - range.begin).most_scratch);
    }
  };
  for (const bool dropout : {false, true}) {
    consider(lora_down_problem(shape, dropout), shape.inputs);
    // Whichever projections have an adapter: the fewer, the finer their parts.
    for (unsigned some = 1; some < 1u << shape.outputs.size(); ++some) {
      const std::array<bool, 3> adapted{(some & 1) != 0, (some & 2) != 0, (some & 4) != 0};
      if (!lora_reads_once(device, shape)) consider(lora_up_problem(shape, adapted), shape.all_outputs());
      const Sizes sizes = sizes_of(device, shape, adapted, dropout, rows, For::up_to_these);
      const bool fit = sizes.apart() <= most_in_binding(device);
      // Fewer rows may still fit side by side.
      most = std::max(most, fit ? sizes.apart() : std::max(sizes.in_turns(), device.info().limits.max_binding / sizeof(float)));
    }
  }
  return most;
}

}  // namespace nibble
