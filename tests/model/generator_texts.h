#pragma once

#include "nibble/model/model_state.h"

#include <cstdint>
#include <span>
#include <vector>

// What the tests of the generator share: the tiny model and texts of its golden file.
namespace nibble::generator_test {

using Tokens = std::vector<std::uint32_t>;

ModelState load_tiny(ProductPath path, bool adapter = true);

// The unpadded tokens of a row of the golden file.
Tokens golden_row(std::size_t row);

// The training forward's logits after each of the tokens, one row each.
std::vector<std::vector<float>> training_logits(const ModelState& state, const Tokens& tokens, bool with_adapter = true);

// In f32 the two differ by the order of sums: about 2^-24 sqrt(K) = 1e-6 in each of the 28 products on the way, which add
// as a random walk. With f16 operands, which few tokens do not have, a product differs by 2^-11 / sqrt(3) = 3e-4 instead.
inline double allowed_error(ProductPath path) { return path == ProductPath::f32 ? 1e-5 : 3e-3; }

inline std::span<const std::uint32_t> first(const Tokens& tokens, std::size_t count) { return std::span(tokens).first(count); }

}  // namespace nibble::generator_test
