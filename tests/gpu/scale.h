#pragma once

#include "nibble/gpu/recorder.h"

#include <cstdint>
#include <string>

// The kernel that tests of the device run.
namespace nibble::gpu {

inline constexpr const char* scale_text = R"(
struct Params { count: u32, factor: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(64) fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                                     @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * groups.x + group.x) * 64u + lane;
  if (i < params.count) { y[i] = x[i] * params.factor; }
}
)";

struct ScaleParams {
  std::uint32_t count;
  float factor;
};

inline Kernel scale_kernel(Device& device) {
  return device.kernel("scale", "scale", "main", [] { return std::string(scale_text); });
}

// y = factor * x
inline void scale(Recorder& recorder, const Tensor& x, const Tensor& y, float factor) {
  const auto count = static_cast<std::uint32_t>(x.size());
  recorder.dispatch(scale_kernel(recorder.device()), {read(x), write(y)}, ScaleParams{count, factor},
                    linear_grid(recorder.device(), (count + 63) / 64), {.bytes = 8.0 * count, .flops = 1.0 * count});
}

}  // namespace nibble::gpu
