#include "nibble/train/loss.h"

#include "nibble/base/error.h"

namespace nibble {

std::string_view name_of(TrainLoss loss) {
  switch (loss) {
    case TrainLoss::sft: return "sft";
    case TrainLoss::dpo: return "dpo";
    case TrainLoss::orpo: return "orpo";
  }
  return "?";
}

TrainLoss train_loss_of(std::string_view name) {
  for (const TrainLoss loss : {TrainLoss::sft, TrainLoss::dpo, TrainLoss::orpo}) {
    if (name == name_of(loss)) return loss;
  }
  fail<UsageError>("--loss", "\"{}\" is no loss; there are sft, dpo and orpo.", name);
}

}  // namespace nibble
