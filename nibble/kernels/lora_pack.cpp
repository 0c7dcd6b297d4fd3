#include "nibble/kernels/lora_pack.h"

#include "nibble/base/error.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr std::uint32_t pack_lanes = 256;
constexpr float unit = 0x1p6f;         // of the packed matrices
constexpr float hidden_unit = 0x1p6f;  // of hidden gradients, in units of rows

// As in the kernel.
struct Matrix {
  std::uint32_t from, to, rows, columns, row_vectors;
  float factor;
};

struct LoraPackParams {
  std::uint32_t first;
};

struct UnpackParams {
  std::uint32_t count, rank, first, width;
  float factor;
};

struct Item {
  Tensor from, to;
  float factor;
  bool is_b;
};

// Where the next tensor begins, and a binding may.
Tensor take(const Tensor& flat, std::uint64_t& at, std::uint32_t rows, std::uint32_t columns) {
  constexpr std::uint64_t multiple = gpu::binding_alignment / 2;
  const std::uint64_t first = at;
  at += (std::uint64_t{rows} * columns + multiple - 1) / multiple * multiple;
  return flat ? flat.part(first, {rows, columns}) : Tensor();
}

// All groups in `flat`; only their sizes where it is empty. Returns the elements taken.
std::uint64_t place_groups(std::span<const LoraGroupMasters> masters, const Tensor& flat,
                           std::vector<LoraGroup>& groups) {
  std::uint64_t at = 0;
  groups.clear();
  for (const auto& group : masters) groups.push_back({.shape = group.shape, .weight_scale = group.weight_scale});
  for (auto& group : groups) group.a = take(flat, at, group.shape.width(), group.shape.inputs);
  for (auto& group : groups) group.b = take(flat, at, group.shape.all_outputs(), group.shape.padded_rank());
  return at;
}

void check_masters(const LoraGroupMasters& masters) {
  const LoraGroupShape& shape = masters.shape;
  check(!shape.outputs.empty() && shape.outputs.size() <= 3 && masters.projections.size() == shape.outputs.size(),
        "lora", "A group has {} projections and {} adapters; 1 to 3 are possible.", shape.outputs.size(),
        masters.projections.size());
  for (std::size_t i = 0; i < shape.outputs.size(); ++i) {
    const auto& [a, b, scaling] = masters.projections[i];
    if (!a) continue;
    check(a.dtype() == DType::f32 && b.dtype() == DType::f32 && a.dim(0) == shape.rank && a.dim(1) == shape.inputs &&
              b.dim(0) == shape.outputs[i] && b.dim(1) == shape.rank,
          "lora", "Adapter matrices {} and {} do not fit rank {}, {} inputs and {} outputs.", a.shape_text(),
          b.shape_text(), shape.rank, shape.inputs, shape.outputs[i]);
  }
}

// Matrices in the order in which A and then B lie.
std::vector<Item> items_of(std::span<const LoraGroupMasters> masters, std::vector<LoraGroup>& groups) {
  std::vector<Item> a_items, b_items;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    LoraGroup& group = groups[g];
    const std::uint32_t rank = group.shape.padded_rank();
    std::uint32_t output = 0;
    for (std::uint32_t i = 0; i < masters[g].projections.size(); ++i) {
      const auto& [a, b, scaling] = masters[g].projections[i];
      const std::uint32_t end = output + group.shape.outputs[i];
      group.adapted[i] = static_cast<bool>(a);
      group.scaling[i] = scaling;
      if (a) a_items.push_back({a, group.a.rows(i * rank, i * rank + rank), unit, false});
      if (a) b_items.push_back({b, group.b.rows(output, end), unit * scaling / group.weight_scale, true});
      output = end;
    }
  }
  a_items.insert(a_items.end(), b_items.begin(), b_items.end());
  return a_items;
}

struct Span {
  std::uint64_t begin, end;  // bytes in a buffer
  std::uint64_t bytes() const { return end - begin; }
};

Span with(const Span& span, const Tensor& tensor) {
  const std::uint64_t begin = tensor.offset() / gpu::binding_alignment * gpu::binding_alignment;
  return {std::min(span.begin, begin), std::max(span.end, tensor.offset() + tensor.bytes())};
}

Tensor cover(const Tensor& first, const Span& span) {
  const auto size = size_of(first.dtype());
  return {first.buffer(), span.begin, first.dtype(), {static_cast<std::uint32_t>(span.bytes() / size)}};
}

// Cuts items [begin, ...) where they are parts of one buffer that a binding holds.
LoraPack::Run run_from(const std::vector<Item>& items, std::size_t begin, std::uint64_t most,
                       std::vector<Matrix>& table) {
  constexpr Span none{UINT64_MAX, 0};
  Span from = none, to = none;
  std::size_t end = begin;
  for (; end < items.size() && end - begin < 65535 && items[end].is_b == items[begin].is_b; ++end) {
    const Span next_from = with(from, items[end].from), next_to = with(to, items[end].to);
    if (items[end].from.buffer() != items[begin].from.buffer() || std::max(next_from.bytes(), next_to.bytes()) > most)
      break;
    from = next_from;
    to = next_to;
  }
  check(end > begin, "lora", "An adapter matrix {} does not fit into a binding.", items[begin].from.shape_text());
  LoraPack::Run run{.first = static_cast<std::uint32_t>(begin), .count = static_cast<std::uint32_t>(end - begin)};
  run.from = cover(items[begin].from, from);
  run.to = cover(items[begin].to, to);
  for (std::size_t i = begin; i < end; ++i) {
    const Item& item = items[i];
    const std::uint32_t row_vectors = item.to.dim(1) / 8;
    table.push_back({.from = static_cast<std::uint32_t>((item.from.offset() - from.begin) / 4),
                     .to = static_cast<std::uint32_t>((item.to.offset() - to.begin) / 16),
                     .rows = item.from.dim(0),
                     .columns = item.from.dim(1),
                     .row_vectors = row_vectors,
                     .factor = item.factor});
    run.blocks = std::max(run.blocks, (item.from.dim(0) * row_vectors + pack_lanes - 1) / pack_lanes);
  }
  return run;
}

}  // namespace

std::uint32_t LoraGroupShape::all_outputs() const {
  std::uint32_t sum = 0;
  for (const std::uint32_t count : outputs) sum += count;
  return sum;
}

LoraPackBytes lora_pack_bytes(std::span<const LoraGroupShape> shapes) {
  std::uint64_t elements = 0, matrices = 0;
  for (const LoraGroupShape& shape : shapes) {
    take({}, elements, shape.width(), shape.inputs);
    take({}, elements, shape.all_outputs(), shape.padded_rank());
    matrices += 2 * shape.outputs.size();
  }
  return {.room = gpu::buffer_bytes(elements * 2), .table = gpu::buffer_bytes(matrices * sizeof(Matrix))};
}

LoraPack make_lora_pack(gpu::Device& device, std::span<const LoraGroupMasters> masters, const Tensor& room) {
  for (const auto& group : masters) check_masters(group);
  LoraPack pack;
  const std::uint64_t elements = place_groups(masters, {}, pack.groups);
  check<UsageError>(elements > 0 && elements <= UINT32_MAX, "lora", "The packed adapter has {} elements; 1 to {} fit.",
                    elements, UINT32_MAX);
  check(!room || room.size() == elements, "lora", "The room of {} elements is not of the {} that these shapes take.", room ? room.size() : 0,
        elements);
  pack.room = room ? room : device.tensor(DType::f16, {static_cast<std::uint32_t>(elements)}, "packed adapter");
  place_groups(masters, pack.room, pack.groups);
  const auto items = items_of(masters, pack.groups);
  std::vector<Matrix> table;
  const std::uint64_t most = device.info().limits.max_binding - 16;
  for (std::size_t i = 0; i < items.size(); i += pack.runs.back().count)
    pack.runs.push_back(run_from(items, i, most, table));
  if (table.empty()) return pack;
  const auto words = static_cast<std::uint32_t>(table.size() * sizeof(Matrix) / 4);
  pack.table = device.tensor(DType::u32, {words}, "adapter table");
  device.write(pack.table, std::as_bytes(std::span(table)));
  return pack;
}

void record(gpu::Recorder& recorder, const LoraPack& pack) {
  const auto entry = kernel(recorder.device(), "lora_pack", gpu::Prelude().enable("f16").constant("LANES", pack_lanes));
  for (const auto& run : pack.runs) {
    recorder.dispatch(entry, {gpu::read(pack.table), gpu::read(run.from), gpu::read_write(run.to)}, LoraPackParams{run.first},
                      {run.blocks, run.count, 1}, {.bytes = static_cast<double>(run.from.bytes() + run.to.bytes())});
  }
}

void record(gpu::Recorder& recorder, const LoraUnpack& op) {
  auto& device = recorder.device();
  const LoraGroupShape& shape = op.group.shape;
  check(op.projection < shape.outputs.size() && op.dh.dtype() == DType::f16 && op.values.dtype() == DType::f32 &&
            op.dh.dim(1) == shape.width() && op.values.dim(1) == shape.rank &&
            op.values.dim(0) == op.dh.dim(0) && op.scale.dim(0) == op.dh.dim(0),
        "lora", "Shapes do not fit: dh {}, scales {}, values {} for rank {}.", op.dh.shape_text(),
        op.scale.shape_text(), op.values.shape_text(), shape.rank);
  const auto entry = kernel(device, "lora_unpack", gpu::Prelude().enable("f16").constant("LANES", pack_lanes), {"grid"});
  const std::uint32_t rank = shape.rank, width = shape.width();
  for (const auto range :
       gpu::binding_slices(device, op.dh.dim(0), {std::uint64_t{width} * 2, std::uint64_t{rank} * 4, 4})) {
    const auto cut = [&](const Tensor& tensor) { return tensor.rows(range.begin, range.end); };
    const std::uint32_t count = (range.end - range.begin) * rank;
    recorder.dispatch(entry, {gpu::read(cut(op.dh)), gpu::read(cut(op.scale)), gpu::write(cut(op.values))},
                      UnpackParams{count, rank, op.projection * shape.padded_rank(), width, hidden_unit * op.group.weight_scale},
                      gpu::linear_grid(device, (std::uint64_t{count} + pack_lanes - 1) / pack_lanes), {.bytes = 6.0 * count});
  }
}

}  // namespace nibble
