#pragma once

#include "nibble/model/model_state.h"

#include <cstdint>
#include <vector>

namespace nibble::test {

using Matrix = std::vector<double>;  // row-major

// y (T, out) = x W^T + scaling * x A^T B^T of a state's projection, in double by plain loops.
Matrix reference_projection(const ModelState& state, std::uint32_t layer, Projection p, const Matrix& x,
                            const LoraProjection& lora);

// A layer of Qwen3 over one sequence as transformers' Qwen3DecoderLayer computes it, with the given adapters, in double:
// hidden (T, C) to output (T, C).
Matrix reference_layer(const ModelState& state, std::uint32_t layer, const Matrix& hidden, const LoraLayer& lora);
// Its MLP block alone: x + down(silu(gate(n)) * up(n)) with n = norm(x).
Matrix reference_mlp(const ModelState& state, std::uint32_t layer, const Matrix& x, const LoraLayer& lora);

}  // namespace nibble::test
