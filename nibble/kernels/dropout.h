#pragma once

#include <cstdint>

namespace nibble {

// Inverted dropout of a (row, column) matrix: an element is zero with `probability`, else divided by 1 - probability. The
// choice is a hash of the four numbers (seed, stream, row, column), so that a backward repeats it from nothing else.
// Probability 0 costs nothing.
struct Dropout {
  float probability = 0.0f;
  std::uint32_t seed = 0;       // of the step
  std::uint32_t stream = 0;     // of the layer and projection
  std::uint32_t first_row = 0;  // of the operand's first row in the token stream
};

}  // namespace nibble
