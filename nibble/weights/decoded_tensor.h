#pragma once

#include "nibble/io/checkpoint.h"
#include "nibble/weights/quantization_config.h"

namespace nibble {

// Puts what can be computed with in the place of a checkpoint's tensors of wider and of narrower types, as F32: F64 rounded to nearest,
// F8_E4M3 and F8_E5M2 exact, times their scales in f32. Scales lie by a matrix W as W_scale_inv or W_scale (F32, F16, BF16, F8_E8M0): one
// for all of it, one a row, or one for each block, the last ones of which may be cut short. They and what scaled activations when the
// model was made (input_scale, k_scale, v_scale) are forgotten. `blocks` is what config.json says; where it says something a matrix in
// eight bits must have scales, else values count as they are. Nothing but scales is held, and what is read is decoded piece by piece.
// DataError names file and tensor where scales are missing, of another shape or type, or not finite, and where zero points shift them.
void decode_tensors(Checkpoint& checkpoint, const std::optional<Fp8Blocks>& blocks);

// What a tensor is written as where no type is asked for: its own, and bf16 where it is stored in eight bits.
DType written_dtype(const TensorInfo& tensor);

// The bytes that its values have in the file.
std::uint64_t stored_bytes(const TensorInfo& tensor);

}  // namespace nibble
