#pragma once

#include "nibble/base/nf4_table.h"
#include "nibble/io/checkpoint.h"
#include "nibble/quant/double_quant.h"

#include <array>
#include <optional>
#include <span>

namespace nibble {

// Of the tensor that says how a weight is quantised.
inline constexpr std::string_view bnb_state_suffix = ".quant_state.bitsandbytes__nf4", bnb_fp4_state_suffix = ".quant_state.bitsandbytes__fp4";

// A matrix as bitsandbytes stores it in 4 bits (functional.py, QuantState; docs/formats.md): codes under the weight's name, and
// under that name with a suffix the blocks' absmax, the code book and a "quant_state" in JSON. With double quantisation absmax
// is in 8 bits: map[code] * nested_absmax[block of 256] + offset.
struct BnbMatrix {
  std::uint32_t rows = 0, columns = 0;
  CodeBook book = CodeBook::nf4;
  DType dtype = DType::bf16;                       // of the weight that was quantised
  Checkpoint::Entry codes, absmax, nested_absmax;  // the last one without a tensor where absmax is f32
  std::array<float, 256> nested_map{};
  std::uint32_t nested_blocksize = 256;
  float nested_offset = 0;
};

// The weight of that name and shape; empty where it is not quantised. Throws DataError that names file, tensor, what was found and
// what is read: NF4 and FP4 in blocks of 64.
std::optional<BnbMatrix> bnb_matrix(const Checkpoint& checkpoint, const std::string& name, std::uint32_t out, std::uint32_t in);

// Codes (two a byte, the first in the high half) as they are and absmax as bitsandbytes restores it in f32, of as many blocks
// from `first_block` on as `absmax` has room for; `codes` has room for theirs.
void read_bnb(const BnbMatrix& matrix, std::uint64_t first_block, std::span<std::uint8_t> codes, std::span<float> absmax);

// Its scales in 8 bits as they are; empty where they are in f32, or quantised by another map or in other blocks than nibble's own.
std::optional<DoubleQuantized> bnb_double_quantized(const BnbMatrix& matrix);

// Whether a tensor of that name belongs to the quantised `weight`.
bool is_bnb_part(std::string_view name, std::string_view weight);

}  // namespace nibble
