#pragma once

#include "nibble/gpu/recorder.h"

#include <cstdint>

namespace nibble {

// What the workgroups of a kernel with the lowest numbers move for others (nibble/gpu/cargo.h), as its params and bindings say it:
// whole rounds, in each of which an invocation brings `carried_vectors` vectors of 16 bytes.
struct Carry {
  std::uint32_t carriers = 0;      // workgroups; 0: none
  std::uint32_t first_vector = 0;  // of `from` and `to`
  std::uint32_t rounds = 0;
  gpu::Tensor from, to;

  explicit operator bool() const { return carriers > 0; }
};

constexpr std::uint32_t carried_vectors = 8;
// A byte of the device's memory takes about as long as so many operations of its matrix units.
constexpr double flops_as_long_as_a_byte = 70;

// The share of a kernel with `bindings` bindings of its own and workgroups of so many invocations, which takes as long as `flops` operations of products do.
Carry take_cargo(const gpu::Device& device, double flops, std::size_t bindings, std::uint32_t invocations);

}  // namespace nibble
