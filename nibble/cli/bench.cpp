#include "nibble/cli/command.h"
#include "nibble/cli/device_flags.h"
#include "nibble/report/progress.h"
#include "nibble/train/step_bench.h"
#include "nibble/weights/shapes.h"

#include <fmt/format.h>

namespace nibble::cli {
namespace {

struct BenchFlags {
  std::string shape = "qwen3-4b";
  std::vector<std::uint32_t> batch = {1}, length = {512};
  StepBenchOptions step;
  bool cached = false, train_head = false;
  std::string head_moments = "f32", head_state = "device";
  double peak_tflops = 0;
  DeviceFlags device;
};

// The dense f16 rate of the maker's data sheet, where the name tells it; for the share of the card's peak.
double known_peak_tflops(const std::string& name) {
  if (name.find("H100") != std::string::npos || name.find("H200") != std::string::npos) return 989;
  if (name.find("A100") != std::string::npos) return 312;
  if (name.find("RTX 4090") != std::string::npos) return 165;
  if (name.find("RTX 3090") != std::string::npos) return 71;
  return 0;
}

int run(BenchFlags flags) {
  flags.step.config = shape_by_name(flags.shape);
  flags.step.residency = flags.cached ? Residency::cached : Residency::resident;
  if (flags.train_head) {
    flags.step.head = {.moments = flags.head_moments == "8bit" ? HeadMoments::eight_bit : HeadMoments::f32,
                       .place = flags.head_state == "host" ? MemoryPlace::host : MemoryPlace::device};
  }
  bool first = true;
  for (std::size_t i = 0; i < std::max(flags.batch.size(), flags.length.size()); ++i) {
    flags.step.batch = flags.batch[std::min(i, flags.batch.size() - 1)];
    flags.step.length = flags.length[std::min(i, flags.length.size() - 1)];
    gpu::Device device = flags.device.open();
    flags.step.path = flags.device.path(device.info());
    const double peak = flags.peak_tflops > 0 ? flags.peak_tflops : known_peak_tflops(device.info().name);
    if (first) {
      fmt::print("{}; {}, rank {}{}{}\n", describe(device.info(), flags.step.path), flags.shape, flags.step.lora_rank,
                 flags.step.gradient_checkpointing ? ", gradient checkpointing" : "",
                 flags.train_head ? fmt::format(", head trained ({}, {})", flags.head_moments, flags.head_state) : "");
      fmt::print("{:>12} {:>10} {:>9} {:>10} {:>10} {:>8} {:>10} {:>8}\n", "batch x len", "tokens/s", "step ms", "record ms",
                 "TFLOP/s", "of peak", "memory", "loss");
      first = false;
    }
    const StepBenchResult r = bench_step(device, flags.step);
    const double rate = r.flops / r.seconds * 1e-12;
    fmt::print("{:>12} {:>10.0f} {:>9.2f} {:>10.2f} {:>10.1f} {:>8} {:>10} {:>8.4f}\n",
               fmt::format("{} x {}", flags.step.batch, flags.step.length), static_cast<double>(r.tokens) / r.seconds,
               r.seconds * 1e3, r.record_seconds * 1e3, rate, peak > 0 ? fmt::format("{:.1f}%", 100 * rate / peak) : "?",
               human_bytes(r.peak_bytes), r.loss);
    std::fflush(stdout);
    print_profile(device);
  }
  return exit_done;
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* verb = app.add_subcommand("bench", "Measures this GPU.");
  verb->require_subcommand(1);
  CLI::App* step = verb->add_subcommand(
      "step", "Times whole training steps over made-up weights and tokens; no files are needed.\n"
              "Every token is trained. TFLOP/s counts all arithmetic, also what gradient checkpointing computes again.\n"
              "With --profile a table by kernel follows each row.");
  step->add_option("--shape", flags->shape, "qwen3-0.6b, qwen3-1.7b, qwen3-4b or qwen3-8b")->capture_default_str();
  step->add_option("--batch", flags->batch, "Segments of a step; several values give several rows")->capture_default_str();
  step->add_option("--length", flags->length, "Tokens of a segment; several values give several rows")->capture_default_str();
  step->add_option("--lora-rank", flags->step.lora_rank, "Rank of the adapters")->capture_default_str()->check(CLI::Range(1, 256));
  step->add_option("--steps", flags->step.steps, "Timed steps; the median is shown")->capture_default_str()->check(CLI::Range(1, 1000));
  step->add_flag("--gradient-checkpointing", flags->step.gradient_checkpointing, "Keep each layer's input alone");
  step->add_flag("--cached", flags->cached, "Keep the decoded weights in memory");
  step->add_option("--head-chunk", flags->step.head_chunk, "Rows of logits at a time");
  step->add_flag("--train-head", flags->train_head, "Train the head too");
  step->add_option("--head-moments", flags->head_moments, "Its moments")->check(CLI::IsMember({"f32", "8bit"}))->capture_default_str();
  step->add_option("--head-state", flags->head_state, "Where its values and moments are kept")
      ->check(CLI::IsMember({"device", "host"}))->capture_default_str();
  step->add_option("--peak-tflops", flags->peak_tflops, "The card's peak, where nibble does not know it");
  flags->device.add_to(*step, DeviceFlags::AdapterOption::names_gpu);
  step->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
