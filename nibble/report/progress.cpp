#include "nibble/report/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

// Elsewhere than in a terminal the first ten steps are shown, then every tenth.
bool worth_a_line(const StepRecord& record) {
  return record.step <= 10 || record.step % 10 == 0 || record.step == record.total_steps;
}

std::string rewards_text(const PreferenceRecord& r) {
  return fmt::format("rewards {:+.3f} against {:+.3f}  margin {:.3f}  accuracy {:.1f}%", r.rewards_chosen, r.rewards_rejected,
                     r.rewards_margins, 100 * r.rewards_accuracies);
}

}  // namespace

std::string human_bytes(std::uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (value >= 0x1p30) return fmt::format("{:.2f} GiB", value * 0x1p-30);
  if (value >= 0x1p20) return fmt::format("{:.1f} MiB", value * 0x1p-20);
  if (bytes < 1024) return fmt::format("{} bytes", bytes);
  return fmt::format("{:.0f} KiB", std::ceil(value * 0x1p-10));
}

std::string human_seconds(double seconds) {
  if (!std::isfinite(seconds)) return "?";
  const auto whole = static_cast<std::uint64_t>(std::max(0.0, std::round(seconds)));
  if (whole >= 3600) return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
  if (whole >= 60) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} s", whole);
}

std::string grouped(std::uint64_t value) {
  const std::string digits = std::to_string(value);
  std::string result;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) result.push_back(',');
    result.push_back(digits[i]);
  }
  return result;
}

void Progress::step(const StepRecord& r) {
  if (!terminal_ && !worth_a_line(r)) return;
  const std::string line = fmt::format(
      "step {}/{}  loss {:.4f}  {}grad_norm {:.3f}  lr {:.3e}  {:.0f} tokens/s  memory {}  left {}", r.step, r.total_steps, r.loss,
      r.preference ? rewards_text(*r.preference) + "  " : "", r.grad_norm, r.learning_rate, r.tokens_per_second,
      human_bytes(r.memory_bytes), human_seconds(r.seconds_left));
  if (terminal_) {
    fmt::print(out_, "\r\x1b[K{}", line);
    open_ = true;
  } else {
    fmt::print(out_, "{}\n", line);
  }
  std::fflush(out_);
}

void Progress::evaluation(const EvalRecord& r) {
  const std::string quality = r.preference ? rewards_text(*r.preference)
                                           : fmt::format("perplexity {:.2f}  accuracy {:.1f}%", std::exp(r.eval_loss), 100 * r.accuracy);
  say(fmt::format("step {}  eval_loss {:.4f}  {}{}", r.step, r.eval_loss, quality, r.best ? "  (best)" : ""));
}

void Progress::say(const std::string& text) {
  finish_line();
  fmt::print(out_, "{}\n", text);
  std::fflush(out_);
}

void Progress::part(const std::string& what, double done) {
  const int percent = static_cast<int>(100 * std::clamp(done, 0.0, 1.0));
  if (what != part_) last_percent_ = -1;
  part_ = what;
  if (terminal_) {
    if (percent == last_percent_) return;
    fmt::print(out_, "\r\x1b[K{}: {}%", what, percent);
    open_ = percent < 100;
    if (!open_) fmt::print(out_, "\r\x1b[K");
  } else {
    const auto now = std::chrono::steady_clock::now();
    if (last_percent_ < 0) part_shown_ = now;
    if (percent < 100 && now - part_shown_ > std::chrono::seconds(10)) {
      fmt::print(out_, "{}: {}%\n", what, percent);
      part_shown_ = now;
    }
  }
  last_percent_ = percent < 100 ? percent : -1;
  std::fflush(out_);
}

void Progress::finish_line() {
  if (open_) fmt::print(out_, "\n");
  open_ = false;
}

}  // namespace nibble
