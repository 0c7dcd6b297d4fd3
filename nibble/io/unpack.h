#pragma once

#include "nibble/io/spool.h"

namespace nibble {

// What is unpacked may have at most so many bytes, and beyond `unpack_ratio_from` at most so many times those that it was
// packed in: more is no data but an attack on the disk.
constexpr std::uint64_t max_unpacked_bytes = std::uint64_t{64} << 30;
constexpr std::uint64_t max_unpack_ratio = 1000;
constexpr std::uint64_t unpack_ratio_from = std::uint64_t{64} << 20;

enum class Packing { none, gzip, zstd };

// By the first four bytes.
Packing packing_of(std::string_view head);

// The bytes that `packed` unpacks to; several gzip members or zstd frames are read one after the other. Throws DataError with
// `name` where they are damaged, end early, or unpack to too much.
ByteReader unpacked(ByteReader packed, Packing packing, const fs::path& name);

}  // namespace nibble
