#pragma once

#include <cstddef>
#include <span>

#include "nibble/base/ggml_type.h"

// The block formats of ggml (ggml-quants.c) on the processor.
namespace nibble {

// Whole blocks to f32, bit for bit as the Python package `gguf` does; of a type that is decoded
// (GgmlTypeInfo::decoded). `values` has room for all of them. A programming error where the sizes do not fit together.
void ggml_dequantize(GgmlType type, std::span<const std::byte> blocks, std::span<float> values);

// The other way for F32, F16, BF16, Q8_0 and Q4_0, byte for byte as ggml's reference quantiser does.
void ggml_quantize(GgmlType type, std::span<const float> values, std::span<std::byte> blocks);

}  // namespace nibble
