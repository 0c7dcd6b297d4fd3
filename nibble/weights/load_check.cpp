#include "nibble/weights/load_check.h"

#include "nibble/base/half.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/bnb.h"
#include "nibble/weights/scale_room.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr std::uint64_t parts = 3;  // of a matrix, from its beginning to its end

// Where the i-th of the parts begins, each `part` long.
std::uint64_t part_begin(std::uint64_t i, std::uint64_t part, std::uint64_t all) { return (all - part) * i / (parts - 1); }

std::vector<std::byte> bytes_of_values(const Checkpoint::Entry& entry, std::uint64_t first, std::uint64_t count) {
  const std::uint64_t width = size_of(*entry.tensor->dtype);
  std::vector<std::byte> bytes(count * width);
  entry.file->read(*entry.tensor, first * width, bytes);
  return bytes;
}

// One of the matrices that lie one below the other.
Nf4Matrix part_of(const Nf4Matrix& all, std::uint32_t index, std::uint32_t count) {
  const std::uint64_t packed = all.packed.size() / count, absmax = packed * 8 / nf4_block;
  Nf4Matrix part{.packed = all.packed.part(index * packed, {static_cast<std::uint32_t>(packed)}), .absmax = {}, .out = all.out / count, .in = all.in,
                 .codes = all.codes};
  if (all.absmax) part.absmax = all.absmax.part(index * absmax, {static_cast<std::uint32_t>(absmax)});
  return part;
}

// All scales of a matrix as they are restored where they are kept double-quantised.
std::vector<float> restored_absmax(const Checkpoint::Entry& entry, const std::optional<BnbMatrix>& bnb, std::uint64_t blocks) {
  std::vector<std::uint8_t> packed(blocks * nf4_block / 2);
  std::vector<float> absmax(blocks);
  if (bnb) {
    read_bnb(*bnb, 0, packed, absmax);
  } else {
    nf4_quantize(*entry.tensor->dtype, bytes_of_values(entry, 0, blocks * nf4_block), packed, absmax, {.name = entry.tensor->name});
  }
  return decoded(double_quantized(absmax, bnb));
}

// `nested`: the matrix's scales where they are kept double-quantised, else empty.
void check_nf4(gpu::Device& device, const Checkpoint& checkpoint, const std::string& name, const Nf4Matrix& matrix, std::span<const float> nested,
               LoadCheck& result) {
  const Checkpoint::Entry& entry = checkpoint.at(name);
  const auto bnb = bnb_matrix(checkpoint, name, matrix.out, matrix.in);
  const bool same_codes = matrix.codes == (bnb ? bnb->book : CodeBook::nf4);
  const std::vector<float> restored = nested.empty() ? std::vector<float>() : restored_absmax(entry, bnb, nested.size());
  const std::uint64_t blocks = matrix.packed.size() * 8 / nf4_block, part = std::min<std::uint64_t>(64, blocks);
  const auto count = static_cast<std::uint32_t>(part);
  for (std::uint64_t i = 0; i < parts; ++i) {
    const std::uint64_t first = part_begin(i, part, blocks);
    std::vector<std::uint8_t> packed(part * nf4_block / 2);
    std::vector<float> absmax(part);
    if (bnb) {
      read_bnb(*bnb, first, packed, absmax);
    } else {
      nf4_quantize(*entry.tensor->dtype, bytes_of_values(entry, first * nf4_block, part * nf4_block), packed, absmax,
                   {.threads = 1, .simd = Simd::scalar, .name = name});
    }
    const auto got = device.read<std::uint8_t>(matrix.packed.part(first * nf4_block / 8, {count * std::uint32_t{nf4_block} / 8}));
    std::vector<float> got_absmax;
    if (nested.empty()) {
      got_absmax = device.read<float>(matrix.absmax.part(first, {count}));
    } else {
      const auto part_in = [&](std::span<const float> whole) {
        whole = whole.subspan(first, part);
        return std::vector<float>(whole.begin(), whole.end());
      };
      absmax = part_in(restored);
      got_absmax = part_in(nested);
    }
    for (std::uint64_t block = 0; block < part; ++block) {
      const auto begin = static_cast<std::ptrdiff_t>(block * nf4_block / 2);
      const bool same = same_codes && std::equal(packed.begin() + begin, packed.begin() + begin + nf4_block / 2, got.begin() + begin) &&
                        std::bit_cast<std::uint32_t>(absmax[block]) == std::bit_cast<std::uint32_t>(got_absmax[block]);
      result.wrong_blocks += same ? 0 : 1;
    }
    result.blocks += part;
  }
}

void check_dense(gpu::Device& device, const Checkpoint::Entry& entry, const DenseMatrix& matrix, LoadCheck& result) {
  const std::uint64_t columns = matrix.data.dim(1), rows = matrix.data.dim(0), part = std::min<std::uint64_t>(4, rows);
  for (std::uint64_t i = 0; i < parts; ++i) {
    const std::uint64_t first = part_begin(i, part, rows);
    std::vector<float> values(part * columns);
    convert_to_f32(*entry.tensor->dtype, bytes_of_values(entry, first * columns, values.size()), values);
    const gpu::Tensor of = matrix.data.rows(static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(first + part));
    const bool halves = matrix.data.dtype() == DType::f16;
    const auto half_bits = halves ? device.read<std::uint16_t>(of) : std::vector<std::uint16_t>();
    const auto floats = halves ? std::vector<float>() : device.read<float>(of);
    for (std::size_t e = 0; e < values.size(); ++e) {
      const bool same = halves ? half_bits[e] == f32_to_f16(values[e] / matrix.scale) : floats[e] == values[e];
      result.wrong_values += same ? 0 : 1;
    }
    result.values += values.size();
  }
}

}  // namespace

LoadCheck check_loaded(gpu::Device& device, const Checkpoint& checkpoint, const DeviceWeights& weights) {
  LoadCheck result;
  const auto dense = [&](std::string_view name, const Table& matrix) {
    if (matrix.data && checkpoint.has(name)) check_dense(device, checkpoint.at(name), matrix, result);
  };
  dense(embedding_tensor_name, weights.embedding);
  if (weights.head.buffer() != weights.embedding.buffer()) dense(head_tensor_name, weights.head);
  for (std::uint32_t layer = 0; layer < weights.layers.size(); ++layer) {
    const LayerProjections& stored = weights.stored(device, layer);
    for (const Projection p : all_projections) {
      const auto names = module_names(weights.layers[layer].experts(), layer, p);
      const auto count = static_cast<std::uint32_t>(names.size());
      const Nf4Matrix& all = stored[static_cast<std::size_t>(p)];
      const std::vector<float> nested = all.absmax ? std::vector<float>() : read_absmax(device, all);
      for (std::uint32_t i = 0; i < count; ++i) {
        const std::size_t own = nested.size() / count;
        check_nf4(device, checkpoint, names[i] + ".weight", part_of(all, i, count), std::span(nested).subspan(i * own, own), result);
      }
    }
  }
  return result;
}

}  // namespace nibble
