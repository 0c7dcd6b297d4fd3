#pragma once

#include "nibble/base/nf4_table.h"
#include "nibble/kernels/lora_rows_sum.h"
#include "nibble/kernels/operand.h"

#include <optional>

namespace nibble {

// An NF4 weight (out, in) as bitsandbytes stores it: two codes a byte, the first in the high half, row-major over the
// flattened matrix; value = code * absmax of its block of 64 elements. out * in is a multiple of 64.
struct Nf4 {
  Tensor packed;  // u8 (out * in / 2), or u32 (out * in / 8) of the same bytes
  Tensor absmax;  // f32 (out * in / 64)
  CodeBook codes = CodeBook::nf4;
};

// Columns of weights that are decoded into tiles of their transpose are a multiple of this.
constexpr std::uint32_t tiled_columns = 32;

// out.data(N, K) = value / out.scale, exact in f32 (with scale 1) and rounded to nearest in f16, in rows or in tiles, which
// must fit into a binding.
struct DequantizeNf4 {
  Nf4 w;
  Weight out;
  std::optional<gpu::AdapterType> tiles_for = {};  // the kernel of another type of adapter than the one in use
  const LoraRowsSum* rows_sum = nullptr;  // what the first workgroups do beside; none: nothing
};
void record(gpu::Recorder&, const DequantizeNf4&);

// The packed codes as u32s, whichever type they are kept as.
Tensor words_of(const Nf4& w);

// A code book as the WGSL constant NF4_CODES.
const std::string& nf4_codes_text(CodeBook book);

}  // namespace nibble
