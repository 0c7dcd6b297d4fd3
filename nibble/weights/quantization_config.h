#pragma once

#include "nibble/io/json.h"

#include <cstdint>
#include <optional>

namespace nibble {

// How config.json says that weights in eight bits are scaled: one scale each block of so many rows and columns, where they have neither
// one for the matrix nor one a row, which the scales' shape tells.
struct Fp8Blocks {
  std::uint32_t rows = 128, columns = 128;
};

// Looks at "quantization_config" of a config.json: empty where there is none, or that of bitsandbytes in 4 bits, whose tensors say
// themselves how they are stored; the blocks of what DeepSeek's and Qwen's folders ("fp8"), FBGEMM's ("fbgemm_fp8") and those of
// compressed-tensors store in eight bits. DataError names what else was found and what is read.
std::optional<Fp8Blocks> read_quantization(const JsonObject& config);

}  // namespace nibble
