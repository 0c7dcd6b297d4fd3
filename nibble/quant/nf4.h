#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "nibble/base/dtype.h"
#include "nibble/base/nf4_table.h"

// NF4 quantisation bit for bit as bitsandbytes stores it (its functional.py): blocks run over the flattened tensor;
// absmax is the largest magnitude of a block in f32; the code is that of x * (1 / max(absmax, 1e-38)); a block of
// zeros gets code 7, which stands for zero.
namespace nibble {

// Where the first of two values lies in its byte: bitsandbytes has it in the high half.
enum class NibbleOrder { high_first, low_first };

enum class Simd { scalar, avx2, avx512 };

// The best that this processor has.
Simd best_simd();

constexpr std::size_t nf4_packed_bytes(std::size_t count) { return count / 2 + count % 2; }
constexpr std::size_t nf4_blocks(std::size_t count, std::size_t block_size = nf4_block) {
  return count / block_size + (count % block_size != 0 ? 1 : 0);
}

struct Nf4Options {
  std::size_t block_size = nf4_block;  // a multiple of 64; the last block may be short
  NibbleOrder order = NibbleOrder::high_first;
  unsigned threads = 0;  // 0: as many as the processor has; the result is the same for any number
  Simd simd = best_simd();
  std::string_view name = "tensor";  // for errors
  std::size_t first_index = 0;       // of the first value within its tensor, for errors
  CodeBook codes = CodeBook::nf4;    // that a matrix is dequantised by
};

// Quantises `count` f32, f16 or bf16 values that lie in `bytes` without alignment. `packed` holds nf4_packed_bytes
// (an odd count leaves the last half byte zero), `absmax` nf4_blocks. DataError on a NaN or infinity, with its index.
void nf4_quantize(DType dtype, std::span<const std::byte> bytes, std::span<std::uint8_t> packed,
                  std::span<float> absmax, const Nf4Options& options = {});

// value = codes_of(options.codes)[code] * absmax, in f32.
void nf4_dequantize(std::span<const std::uint8_t> packed, std::span<const float> absmax, std::span<float> out,
                    const Nf4Options& options = {});

// The most by which a value of a block can differ from what it dequantises to: half the widest gap between values,
// plus the rounding of scaling and of the product.
float nf4_error_bound(float absmax);

}  // namespace nibble
