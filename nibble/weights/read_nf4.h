#pragma once

#include <cstdint>
#include <span>

#include "nibble/io/checkpoint.h"

namespace nibble {

// Reads a tensor (F32, F16 or BF16) and quantises it to NF4 in blocks of 64, first value in the high half: all cores
// read and quantise pieces of about a megabyte each, so the tensor itself is never held. `packed` has
// nf4_packed_bytes(numel) bytes, `absmax` nf4_blocks(numel) values. `threads` 0 is all cores; the result is the same
// for any number. DataError names file and tensor where it cannot be read or holds a value that is not finite.
void read_as_nf4(const Checkpoint::Entry& tensor, std::span<std::uint8_t> packed, std::span<float> absmax,
                 unsigned threads = 0);

}  // namespace nibble
