#include "nibble/kernels/carry.h"

#include "nibble/gpu/cargo.h"

namespace nibble {

Carry take_cargo(const gpu::Device& device, double flops, std::size_t bindings, std::uint32_t invocations) {
  // Few, since each takes the place of one that works, and enough for the link (docs/performance.md).
  constexpr std::uint32_t carriers = 12;
  const auto cargo = gpu::Cargo::waiting(device);
  if (!cargo || bindings + 2 > device.info().limits.storage_bindings) return {};
  const std::uint32_t unit = carriers * invocations * carried_vectors * 4;  // words
  const auto piece = cargo->take(flops, unit);
  if (!piece) return {};
  return {.carriers = carriers, .first_vector = piece->first_word / 4, .rounds = piece->words / unit, .from = piece->from, .to = piece->to};
}

}  // namespace nibble
