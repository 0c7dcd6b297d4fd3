#pragma once

#include "nibble/weights/peft.h"

#include <string_view>

namespace nibble {

// Starts of an adapter that are made together with the base in 4 bits.
enum class LoraStartKind : std::uint8_t {
  pissa,  // PiSSA (Meng et al. 2024): the adapter is W's principal part, the base NF4 of the rest
  loftq,  // LoftQ (Li et al. 2023): quantising, and the principal part of what that changes, in turns
};

struct LoraStart {
  LoraStartKind kind = LoraStartKind::pissa;
  std::uint32_t svd_iterations = 8;  // of low_rank(), where a start of PEFT says pissa_niter_N
  std::uint32_t loftq_rounds = 1;
  LoraConfig lora;
  std::uint64_t seed = 42;
};

// "pissa", "pissa_niter_4", "loftq", as PEFT's init_lora_weights. UsageError names what there is.
LoraStart lora_start_of(std::string_view name);
// "pissa_init" or "loftq_init": where PEFT's examples keep such an adapter beside its base.
std::string_view folder_of(LoraStartKind kind);

// A matrix (out, in) as base in NF4 and the adapter that goes with it: W ~ base + scaling * B A. Of a module without an adapter the base
// is W.
struct StartedMatrix {
  std::vector<std::uint8_t> packed;
  std::vector<float> absmax;
  LoraMatrices lora;
};
StartedMatrix start_matrix(std::span<const float> w, ProjectionDims dims, const LoraModule& module, const LoraStart& start, std::string_view name);

// An adapter that was trained over such a base, from `first` on, as one for the original weights: of twice the rank, with what the
// start took out of the base as its second half (PEFT's subtract_mutated_init). DataError where the two differ in form or are of DoRA.
LoraAdapter without_start(const LoraAdapter& trained, const LoraAdapter& first);

}  // namespace nibble
