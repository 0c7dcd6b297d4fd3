#pragma once

#include "nibble/io/safetensors.h"
#include "nibble/model/model.h"

#include <string>
#include <vector>

namespace nibble {

// How near a result must come to its reference; docs/numerics.md says why.
struct ParityBars {
  double loss_error;         // relative
  double dpo_loss_error;     // the same of DPO's loss, taken of differences of sums
  double logits_cosine;
  double gradient_error;     // ||a - b|| / ||b||
  double gradient_cosine;
};
ParityBars parity_bars(ProductPath path);

struct GradientParity {
  std::string name;  // as PEFT names it
  double error = 0, cosine = 0;
};

struct ParityReport {
  double loss = 0, reference_loss = 0, loss_error = 0;
  double logits_cosine = 1, logits_error = 0;
  std::vector<GradientParity> gradients;  // in the order of the file
  std::uint64_t nf4_codes = 0, nf4_differences = 0;  // of the sampled projections: codes and scales compared bit for bit

  const GradientParity& worst_gradient() const;   // by error
  const GradientParity& worst_direction() const;  // by cosine
  bool passes(const ParityBars& bars) const;
};

// Runs the rows of a golden file (its form: tests/golden/README.md) through the model and compares loss, logits, every
// gradient and the NF4 sample. The model is one of the state's, with room for max_tokens = golden_tokens() and trainable
// adapters. Throws DataError where the file does not fit the model or lacks a gradient.
ParityReport compare_with_golden(Model& model, const ModelState& state, const SafetensorsFile& golden);

// The tokens in a golden file's rows or pairs, padding left out.
std::uint32_t golden_tokens(const SafetensorsFile& golden);

}  // namespace nibble
