#pragma once

#include "nibble/gpu/recorder.h"

#include <initializer_list>
#include <map>
#include <string_view>

namespace nibble {

using gpu::Tensor;

// The kernel `entry` of nibble/kernels/FILE.wgsl: `enable` lines and constants of the prelude, then the snippets `libs` of
// kernels/lib/, then the file. Compiled once per device and text. With the environment variable NIBBLE_WGSL_DIR set to the
// source folder, texts come from there, so a kernel can be changed without a build.
gpu::Kernel kernel(gpu::Device& device, std::string_view file, const gpu::Prelude& prelude = {},
                   std::initializer_list<std::string_view> libs = {}, std::string_view entry = "main");

namespace detail {
const std::map<std::string_view, std::string_view>& embedded_wgsl();
}

}  // namespace nibble
