#include "nibble/weights/nf4_room.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"

#include <algorithm>
#include <array>

namespace nibble {
namespace {

constexpr std::uint64_t block_bytes = 2 * sizeof(float);

std::uint64_t count_of(ProjectionDims dims) { return std::uint64_t{dims.out} * dims.in; }

std::uint64_t count_of(const ModelConfig& config, Projection p) { return matrices_of(config, p) * count_of(projection_dims(config, p)); }

// Gives out bytes of a buffer.
class Arena {
 public:
  std::uint64_t take(std::uint64_t bytes) {
    const std::uint64_t begin = end_;
    end_ += gpu::up_to_binding(bytes);
    return begin;
  }
  std::uint64_t end() const { return end_; }

 private:
  std::uint64_t end_ = 0;
};

// Where codes and scales of each projection begin, in bytes, and what they take together. Double-quantised scales lie as in a room of
// their own.
struct Places {
  std::array<std::uint64_t, 7> packed{}, absmax{};
  std::uint64_t scale_codes = 0, scale_blocks = 0;
  std::uint64_t bytes = 0;

  Places(const ModelConfig& config, bool double_quant) {
    Arena arena;
    for (const Joint joint : all_joints) {
      for (const Projection p : members_of(joint)) {
        packed[static_cast<std::size_t>(p)] = arena.take(count_of(config, p) / 2);
      }
      for (const Projection p : members_of(joint)) {
        if (double_quant) break;
        absmax[static_cast<std::size_t>(p)] = arena.take(count_of(config, p) / nf4_block * sizeof(float));
      }
    }
    if (double_quant) {
      const ScalePlaces scales(config);
      scale_codes = arena.take(scales.scales);
      scale_blocks = arena.take(scales.blocks * block_bytes);
    }
    bytes = arena.end();
  }
};

}  // namespace

bool joins_in_nf4(const ModelConfig& config, Joint joint) {
  const auto members = members_of(joint);
  return std::all_of(members.begin(), members.end() - 1, [&](Projection p) {
    const std::uint64_t count = count_of(config, p);
    return count / 2 % gpu::binding_alignment == 0 && count % nf4_block == 0 && count / nf4_block * 4 % gpu::binding_alignment == 0;
  });
}

ScalePlaces::ScalePlaces(const ModelConfig& config) {
  for (const Projection p : all_projections) {  // members of a joint are neighbours among them
    const auto i = static_cast<std::size_t>(p);
    const std::uint64_t matrices = matrices_of(config, p);
    first[i] = scales;
    count[i] = count_of(config, p) / nf4_block;
    of_matrix[i] = count[i] / matrices;
    first_block[i] = blocks;
    constexpr std::uint64_t step = gpu::binding_alignment / sizeof(float);
    scales += (count[i] + step - 1) / step * step;
    blocks += matrices * ((of_matrix[i] + nested_block_size - 1) / nested_block_size);
  }
}

std::uint64_t nf4_layer_bytes(const ModelConfig& config, bool double_quant) { return Places(config, double_quant).bytes; }

LayerProjections place_nf4(const gpu::Tensor& room, const ModelConfig& config, bool double_quant) {
  const Places places(config, double_quant);
  const ScalePlaces scales(config);
  check(room.bytes() == places.bytes, "NF4", "A room of {} bytes came for projections of {}.", room.bytes(), places.bytes);
  LayerProjections projections;
  for (const Projection p : all_projections) {
    const auto i = static_cast<std::size_t>(p);
    const ProjectionDims dims = projection_dims(config, p);
    const std::uint64_t count = count_of(config, p);
    projections[i] = {
        .packed = {room.buffer(), room.offset() + places.packed[i], DType::u32, {static_cast<std::uint32_t>(count / 8)}},
        .absmax = {},
        .out = matrices_of(config, p) * dims.out,
        .in = dims.in};
    const auto blocks = static_cast<std::uint32_t>(count / nf4_block);
    if (!double_quant) {
      projections[i].absmax = {room.buffer(), room.offset() + places.absmax[i], DType::f32, {blocks}};
      continue;
    }
    const std::uint32_t matrices = matrices_of(config, p);
    const auto nested = static_cast<std::uint32_t>((scales.of_matrix[i] + nested_block_size - 1) / nested_block_size);
    projections[i].scale_codes = {room.buffer(), room.offset() + places.scale_codes + scales.first[i], DType::u8, {blocks}};
    projections[i].scale_blocks = {room.buffer(), room.offset() + places.scale_blocks + scales.first_block[i] * block_bytes, DType::f32,
                                   {matrices, nested, 2}};
  }
  return projections;
}

bool have_one_code_book(std::span<const Nf4Matrix> members) {
  return std::all_of(members.begin(), members.end(), [&](const Nf4Matrix& matrix) { return matrix.codes == members.front().codes; });
}

std::optional<Nf4Matrix> joined_nf4(std::span<const Nf4Matrix> members) {
  if (!have_one_code_book(members)) return std::nullopt;
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

Nf4Room::Nf4Room(gpu::Device& device, const ModelConfig& config, gpu::HostMemory host, bool double_quant) : device_(device) {
  host_.emplace(device, host, nf4_layer_bytes(config, double_quant), "NF4 in host memory");
  room_ = host_->tensor();
  projections_ = place_nf4(room_, config, double_quant);
}

Nf4Room::Nf4Room(gpu::Device& device, const ModelConfig& config, const gpu::Tensor& room, bool double_quant)
    : device_(device), room_(room), projections_(place_nf4(room, config, double_quant)) {}

Nf4Room::Nf4Room(gpu::Device& device, const ModelConfig& config, DiskLayers& disk, const gpu::Tensor& slot, bool double_quant)
    : device_(device), disk_(&disk), room_(slot), projections_(place_nf4(slot, config, double_quant)) {}

void Nf4Room::write(const gpu::Tensor& part, std::span<const std::byte> bytes, std::uint64_t first_byte) {
  check(part.buffer() == room_.buffer() && part.offset() >= room_.offset() && first_byte + bytes.size() <= part.bytes(), "NF4",
        "{} bytes at byte {} do not fit into a part of {}.", bytes.size(), first_byte, part.bytes());
  if (host_) {
    host_->write(bytes, part.offset() + first_byte);
  } else if (disk_) {
    disk_->write(part.offset() - room_.offset() + first_byte, bytes);
  } else {
    device_.write(part, bytes, first_byte);
  }
}

void Nf4Room::write_scales(Projection p, std::uint32_t index, const DoubleQuantized& scales) {
  const Nf4Matrix& to = projections_[static_cast<std::size_t>(p)];
  const std::uint32_t matrices = to.scale_blocks.dim(0);
  check(index < matrices && scales.codes.size() * matrices == to.scale_codes.size() && scales.nested_absmax.size() == to.scale_blocks.dim(1), "NF4",
        "{} codes and {} blocks of scales came for matrix {} of {}, which have {} codes together and {} blocks each.", scales.codes.size(),
        scales.nested_absmax.size(), index, matrices, to.scale_codes.size(), to.scale_blocks.dim(1));
  std::vector<float> blocks;
  for (const float largest : scales.nested_absmax) blocks.insert(blocks.end(), {largest, scales.offset});
  write(to.scale_blocks, std::as_bytes(std::span(blocks)), index * blocks.size() * sizeof(float));
  // A matrix's own codes may be no whole words, which alone can be written.
  scale_codes_.insert(scale_codes_.end(), scales.codes.begin(), scales.codes.end());
  if (index + 1 < matrices) return;
  write(to.scale_codes, std::as_bytes(std::span(scale_codes_)));
  scale_codes_.clear();
}

gpu::Tensor Nf4Room::finish() {
  if (host_) host_->seal();
  return room_;
}

}  // namespace nibble
