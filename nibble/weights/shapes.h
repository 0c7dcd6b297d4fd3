#pragma once

#include "nibble/weights/config.h"

#include <string>

namespace nibble {

// Sizes of published models by name ("qwen3-4b"), for measuring and planning without files; throws UsageError that lists them.
ModelConfig shape_by_name(const std::string& name);

}  // namespace nibble
