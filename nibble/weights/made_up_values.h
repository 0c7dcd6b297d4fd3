#pragma once

#include "nibble/base/rng.h"
#include "nibble/gpu/tensor.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <span>
#include <vector>

namespace nibble {

// Fills a tensor through `write(tensor, bytes, first byte)` by repeating one block of random words, each passed through `shape`.
template <typename Write>
void fill_random(const gpu::Tensor& tensor, const std::function<std::uint32_t(std::uint32_t)>& shape, const Write& write) {
  Rng rng(tensor.size());
  std::vector<std::uint32_t> block(1 << 20);
  for (std::uint32_t& word : block) word = shape(rng.next_u32());
  for (std::uint64_t first = 0; first < tensor.bytes(); first += block.size() * 4) {
    const std::uint64_t size = std::min<std::uint64_t>(block.size() * 4, tensor.bytes() - first);
    write(tensor, std::as_bytes(std::span(block)).first(size), first);
  }
}

// Scales of blocks whose largest magnitude is between two thirds of `largest` and it.
inline std::function<std::uint32_t(std::uint32_t)> scale_words(float largest) {
  return [largest](std::uint32_t word) {
    return std::bit_cast<std::uint32_t>(largest * (2.0f + static_cast<float>(word >> 16) * 0x1p-16f) / 3.0f);
  };
}

inline std::uint32_t any_word(std::uint32_t word) { return word; }

}  // namespace nibble
