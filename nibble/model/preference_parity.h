#pragma once

#include "nibble/model/parity.h"

namespace nibble {

struct PreferenceParity {
  ParityReport dpo, orpo;  // losses and gradients; there are no logits and no codes
  double logps_error = 0;  // largest relative error of an answer's log-probability, with the adapter and without

  bool passes(const ParityBars& bars) const;
};

// The same as compare_with_golden for a golden file of pairs of answers: both losses, log-probabilities and every gradient.
// DPO's reference is computed with the adapter switched off.
PreferenceParity compare_preferences_with_golden(Model& model, const SafetensorsFile& golden);

}  // namespace nibble
