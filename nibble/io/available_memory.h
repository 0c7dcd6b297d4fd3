#pragma once

#include "nibble/io/file.h"

#include <cstdint>
#include <optional>

namespace nibble {

// Bytes of the host's memory that the program may still take: what /proc/meminfo calls available, or what the limits of its control
// groups (cgroup v2, or v1's memory controller) leave where that is less; pages of files that a group holds count as left. Empty where the
// system does not say. `root` stands for /, for tests.
std::optional<std::uint64_t> available_memory(const fs::path& root = "/");

}  // namespace nibble
