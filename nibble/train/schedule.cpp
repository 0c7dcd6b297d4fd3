#include "nibble/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace nibble {

std::string_view name_of(LrScheduler scheduler) {
  switch (scheduler) {
    case LrScheduler::constant: return "constant";
    case LrScheduler::linear: return "linear";
    case LrScheduler::cosine: return "cosine";
  }
  return "?";
}

double learning_rate(const Schedule& schedule, std::uint64_t step) {
  if (step < schedule.warmup_steps) {
    return schedule.learning_rate * static_cast<double>(step) / static_cast<double>(schedule.warmup_steps);
  }
  const double left = static_cast<double>(std::max<std::uint64_t>(1, schedule.total_steps - std::min(schedule.total_steps, schedule.warmup_steps)));
  const double progress = std::min(1.0, static_cast<double>(step - schedule.warmup_steps) / left);
  double factor = 1.0;
  if (schedule.kind == LrScheduler::linear) factor = 1.0 - progress;
  if (schedule.kind == LrScheduler::cosine) factor = 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return schedule.learning_rate * (schedule.min_lr_ratio + (1.0 - schedule.min_lr_ratio) * factor);
}

}  // namespace nibble
