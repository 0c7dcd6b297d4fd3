#pragma once

#include <cstdint>
#include <string_view>

namespace nibble {

enum class LrScheduler { constant, linear, cosine };

std::string_view name_of(LrScheduler scheduler);

struct Schedule {
  LrScheduler kind = LrScheduler::cosine;
  double learning_rate = 2e-4;
  std::uint64_t warmup_steps = 0;
  std::uint64_t total_steps = 1;
  double min_lr_ratio = 0;  // the floor, as a part of learning_rate
};

// The learning rate of the update with number `step`, from 0 on, as transformers' get_{constant,linear,cosine}_schedule_with_
// warmup give it: the warm-up rises from 0 by 1/warmup_steps an update, then the rate falls from learning_rate to the floor
// over the steps that remain.
double learning_rate(const Schedule& schedule, std::uint64_t step);

}  // namespace nibble
