#include "nibble/weights/scale_room.h"

#include "nibble/quant/parallel.h"
#include "nibble/weights/nf4_room.h"

#include <algorithm>

namespace nibble {

ScaleRoom::ScaleRoom(gpu::Device& device, const ModelConfig& config)
    : map_(device.tensor<float>(DType::f32, {256}, dynamic_map(), "map of scales")) {
  const ScalePlaces places(config);
  absmax_ = device.tensor(DType::f32, {static_cast<std::uint32_t>(places.scales)}, "scales of a layer");
  blocks_ = static_cast<std::uint32_t>(places.blocks);
  for (std::size_t p = 0; p < parts_.size(); ++p) {
    parts_[p] = {.first = static_cast<std::uint32_t>(places.first[p]), .count = static_cast<std::uint32_t>(places.count[p]),
                 .of_matrix = static_cast<std::uint32_t>(places.of_matrix[p]), .first_block = static_cast<std::uint32_t>(places.first_block[p])};
  }
}

std::uint64_t ScaleRoom::bytes(const ModelConfig& config) {
  return gpu::buffer_bytes(DType::f32, {static_cast<std::uint32_t>(ScalePlaces(config).scales)}) + gpu::buffer_bytes(DType::f32, {256});
}

const LayerProjections& ScaleRoom::projections(gpu::Recorder& recorder, std::uint32_t layer, const LayerProjections& kept) {
  if (layer_ != layer) {
    const gpu::Tensor &codes = kept.front().scale_codes, &blocks = kept.front().scale_blocks;  // where those of all begin
    record(recorder, DecodeNf4Scales{.codes = {codes.buffer(), codes.offset(), DType::u32, {static_cast<std::uint32_t>(absmax_.size() / 4)}},
                                     .blocks = {blocks.buffer(), blocks.offset(), DType::f32, {blocks_, 2}},
                                     .map = map_,
                                     .parts = parts_,
                                     .absmax = absmax_});
    layer_ = layer;
  }
  current_ = kept;
  for (std::size_t p = 0; p < current_.size(); ++p) current_[p].absmax = absmax_.part(parts_[p].first, {parts_[p].count});
  return current_;
}

DoubleQuantized double_quantized(std::span<const float> absmax, const std::optional<BnbMatrix>& bnb) {
  if (bnb) {
    if (auto kept = bnb_double_quantized(*bnb)) return *std::move(kept);
  }
  DoubleQuantized whole;
  whole.offset = mean_scale(absmax);
  whole.codes.resize(absmax.size());
  whole.nested_absmax.resize((absmax.size() + nested_block_size - 1) / nested_block_size);
  constexpr std::size_t least_blocks = 64;  // a thread
  parallel_ranges(whole.nested_absmax.size(), least_blocks, 0, [&](std::size_t begin, std::size_t end) {
    const std::size_t first = begin * nested_block_size, last = std::min(end * nested_block_size, absmax.size());
    const DoubleQuantized part = double_quantize(absmax.subspan(first, last - first), whole.offset);
    std::copy(part.codes.begin(), part.codes.end(), whole.codes.begin() + static_cast<std::ptrdiff_t>(first));
    std::copy(part.nested_absmax.begin(), part.nested_absmax.end(), whole.nested_absmax.begin() + static_cast<std::ptrdiff_t>(begin));
  });
  return whole;
}

std::vector<float> decoded(const DoubleQuantized& scales) {
  std::vector<float> absmax(scales.codes.size());
  double_dequantize({.codes = scales.codes, .map = dynamic_map(), .nested_absmax = scales.nested_absmax, .offset = scales.offset}, absmax);
  return absmax;
}

std::vector<float> read_absmax(gpu::Device& device, const Nf4Matrix& matrix) {
  if (matrix.absmax) return device.read<float>(matrix.absmax);
  const auto codes = device.read<std::uint8_t>(matrix.scale_codes);
  const auto blocks = device.read<float>(matrix.scale_blocks);
  const std::size_t matrices = matrix.scale_blocks.dim(0), of_matrix = codes.size() / matrices, blocks_of_matrix = matrix.scale_blocks.dim(1);
  std::vector<float> absmax(codes.size()), nested(blocks_of_matrix);
  for (std::size_t i = 0; i < matrices; ++i) {
    const auto own = std::span(blocks).subspan(2 * i * blocks_of_matrix, 2 * blocks_of_matrix);
    for (std::size_t block = 0; block < blocks_of_matrix; ++block) nested[block] = own[2 * block];
    double_dequantize({.codes = std::span(codes).subspan(i * of_matrix, of_matrix), .map = dynamic_map(), .nested_absmax = nested, .offset = own[1]},
                      std::span(absmax).subspan(i * of_matrix, of_matrix));
  }
  return absmax;
}

}  // namespace nibble
