#include "nibble/weights/nf4_room.h"

#include "nibble/base/nf4_table.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr std::uint32_t binding_alignment = 256;  // bytes, on every adapter

std::uint64_t count_of(ProjectionDims dims) { return std::uint64_t{dims.out} * dims.in; }

}  // namespace

bool joins_in_nf4(const ModelConfig& config, Joint joint) {
  const auto members = members_of(joint);
  return std::all_of(members.begin(), members.end() - 1, [&](Projection p) {
    const std::uint64_t count = count_of(projection_dims(config, p));
    return count / 2 % binding_alignment == 0 && count % nf4_block == 0 && count / nf4_block * 4 % binding_alignment == 0;
  });
}

void make_nf4_room(gpu::Device& device, const ModelConfig& config, LayerWeights& layer) {
  for (const Joint joint : all_joints) {
    const bool joins = joins_in_nf4(config, joint);
    gpu::Tensor packed, absmax;
    std::uint64_t first = 0;
    for (const Projection p : members_of(joint)) {
      const ProjectionDims dims = projection_dims(config, p);
      const auto words = static_cast<std::uint32_t>(count_of(dims) / 8), blocks = static_cast<std::uint32_t>(count_of(dims) / nf4_block);
      if (!joins || !packed) {
        const std::uint64_t all = count_of(joins ? joint_dims(config, joint) : dims);
        packed = device.tensor(DType::u32, {static_cast<std::uint32_t>(all / 8)}, "NF4 codes");
        absmax = device.tensor(DType::f32, {static_cast<std::uint32_t>(all / nf4_block)}, "NF4 scales");
        first = 0;
      }
      layer.projections[static_cast<std::size_t>(p)] = {.packed = packed.part(first / 8, {words}),
                                                        .absmax = absmax.part(first / nf4_block, {blocks}), .out = dims.out, .in = dims.in};
      first += count_of(dims);
    }
  }
}

std::optional<Nf4Matrix> joined_nf4(std::span<const Nf4Matrix> members) {
  const Nf4Matrix& first = members.front();
  Nf4Matrix whole = first;
  const auto follows = [](const gpu::Tensor& one, const gpu::Tensor& other) {
    return one.buffer() == other.buffer() && one.offset() + one.bytes() == other.offset();
  };
  for (std::size_t i = 1; i < members.size(); ++i) {
    if (!follows(members[i - 1].packed, members[i].packed) || !follows(members[i - 1].absmax, members[i].absmax)) return std::nullopt;
    whole.out += members[i].out;
    whole.largest = std::max(whole.largest, members[i].largest);
  }
  const std::uint64_t count = count_of({whole.out, whole.in});
  whole.packed = {first.packed.buffer(), first.packed.offset(), DType::u32, {static_cast<std::uint32_t>(count / 8)}};
  whole.absmax = {first.absmax.buffer(), first.absmax.offset(), DType::f32, {static_cast<std::uint32_t>(count / nf4_block)}};
  return whole;
}

}  // namespace nibble
