#include "nibble/kernels/lora.h"

#include "nibble/kernels/product_tiled.h"

#include <algorithm>

namespace nibble {

void record(gpu::Recorder& recorder, const LoraDown& op) {
  record_nt(recorder, {.x = op.x, .w = {op.a, {}}, .y = op.h, .dropout = op.dropout});
}

void record(gpu::Recorder& recorder, const LoraUp& op) {
  record_nt(recorder, {.x = {op.h, {}}, .w = {op.b, {}}, .y = op.y, .scale = op.scaling, .accumulate = true});
}

void record(gpu::Recorder& recorder, const LoraUpBackwardInput& op) {
  record_nn(recorder, {.x = op.dy, .w = {op.b, {}}, .y = op.dh, .scale = op.scaling});
}

void record(gpu::Recorder& recorder, const LoraUpBackwardWeight& op) {
  record_tn(recorder, {.x = op.dy, .w = {op.h, {}}, .y = op.db, .scale = op.scaling, .scratch = op.scratch});
}

void record(gpu::Recorder& recorder, const LoraDownBackwardWeight& op) {
  record_tn(recorder, {.x = {op.dh, {}}, .w = op.x, .y = op.da, .dropout = op.dropout, .scratch = op.scratch});
}

void record(gpu::Recorder& recorder, const LoraDownBackwardInput& op) {
  record_nn(recorder, {.x = {op.dh, {}}, .w = {op.a, {}}, .y = op.dx, .accumulate = true, .dropout = op.dropout});
}

std::uint64_t lora_scratch(const gpu::Device& device, std::uint32_t rows, std::uint32_t out, std::uint32_t in,
                           std::uint32_t rank) {
  const auto type = device.info().type;
  return std::max(tn_scratch_size(type, rows, out, rank), tn_scratch_size(type, rows, rank, in));
}

}  // namespace nibble
