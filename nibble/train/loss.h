#pragma once

#include <string_view>

namespace nibble {

// What is minimised: the labels' negative log-likelihood (sft), or a loss of pairs of answers (nibble/kernels/preference.h).
enum class TrainLoss { sft, dpo, orpo };

std::string_view name_of(TrainLoss loss);
TrainLoss train_loss_of(std::string_view name);  // UsageError listing the names

struct LossSettings {
  TrainLoss kind = TrainLoss::sft;
  double beta = 0.1;       // of pairs: DPO's beta, ORPO's lambda; TRL's defaults
  double focal_gamma = 0;  // sft: a label's gradient is multiplied by (1 - p)^gamma; the reported loss is not

  bool takes_pairs() const { return kind != TrainLoss::sft; }
};

}  // namespace nibble
