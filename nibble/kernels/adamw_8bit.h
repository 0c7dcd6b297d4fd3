#pragma once

#include "nibble/kernels/adamw.h"

namespace nibble {

constexpr std::uint32_t moment_block = 256;      // elements that share one absmax
constexpr std::uint32_t blocks_of_binding = 64;  // a binding of absmax begins at a multiple of so many, which are 256 bytes

// The moments of `size` elements in 8 bits by bitsandbytes' dynamic maps (nibble/base/dynamic_map.h): value = map[code] *
// absmax. Four codes a word, whole blocks. Zeroed memory is moments of zero.
struct Moments8Bit {
  Tensor first_codes, second_codes;    // (blocks, 64) u32, blocks = ceil(size / 256)
  Tensor first_absmax, second_absmax;  // (skipped + blocks) f32
  // A part of an array may begin at any block, but a binding only at a multiple of 64 of absmax: those of so many blocks before
  // the part's first stand before its own. Below 64.
  std::uint32_t skipped = 0;
};
Moments8Bit make_moments_8bit(gpu::Device& device, std::uint32_t size);
// Both maps as the kernel reads them: (2, 256) f32, that of the first moment before that of the second.
Tensor moment_maps(gpu::Device& device);

// AdamW with moments in 8 bits: they are decoded, moved on, used, and rounded to the nearest code of their block's new
// absmax. Like `AdamW` otherwise.
struct AdamW8Bit {
  Tensor weights, gradients;  // f32, of one size, any shape
  Moments8Bit moments;
  Tensor maps;                // as moment_maps makes them
  Tensor norm_and_factor;     // (2) f32, as GradNorm leaves it
  AdamWRule rule;
};
void record(gpu::Recorder& recorder, const AdamW8Bit& op);

}  // namespace nibble
