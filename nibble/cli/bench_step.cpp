#include "nibble/cli/bench.h"
#include "nibble/cli/residency_flags.h"
#include "nibble/report/progress.h"
#include "nibble/train/step_bench.h"

#include <fmt/format.h>

namespace nibble::cli {
namespace {

struct StepFlags {
  BenchFlags bench;
  ShapeFlags shape;
  std::vector<std::uint32_t> batch = {1}, length = {512};
  StepBenchOptions step;
  ResidencyFlags residency;
  bool train_head = false;
  std::string head_moments = "f32", head_state = "device";
};

Json settings_of(const StepFlags& flags) {
  return {{"model", flags.shape.label()},
          {"lora_rank", flags.step.lora_rank},
          {"gradient_checkpointing", flags.step.gradient_checkpointing},
          {"residency", flags.residency.name},
          {"streamed_layers", count_of(flags.step.residency, flags.step.config.num_layers, Residency::streamed)},
          {"stream_memory", flags.residency.memory},
          {"stream_slots", flags.residency.slots},
          {"embedding_memory", flags.residency.embedding},
          {"head", flags.train_head ? Json{{"moments", flags.head_moments}, {"state", flags.head_state}} : Json()},
          {"profile", flags.bench.device.profile}};
}

std::string residency_text(const StepFlags& flags) {
  const std::uint32_t streamed = count_of(flags.step.residency, flags.step.config.num_layers, Residency::streamed);
  std::string text = flags.residency.name == "cached" ? ", cached" : "";
  if (flags.step.stream.embedding) text += ", embedding on the host";
  if (streamed > 0) text += fmt::format(", {} of {} layers streamed ({})", streamed, flags.step.config.num_layers, flags.residency.memory);
  return text;
}

void print_head(std::FILE* out, const StepFlags& flags) {
  fmt::print(out, "{}, rank {}{}{}\n", flags.shape.label(), flags.step.lora_rank,
             (flags.step.gradient_checkpointing ? ", gradient checkpointing" : "") + residency_text(flags),
             flags.train_head ? fmt::format(", head trained ({}, {})", flags.head_moments, flags.head_state) : "");
  fmt::print(out, "{:>12} {:>10} {:>9} {:>17} {:>10} {:>8} {:>8} {:>10} {:>8}\n", "batch x len", "tokens/s", "step ms",
             "from - to", "record ms", "TFLOP/s", "of peak", "memory", "loss");
}

// What was sent to the GPU, in the least time that copies alone take.
void print_copies(std::FILE* out, const StepBenchResult& r) {
  if (r.host_bytes == 0) return;
  fmt::print(out, "{:>12} {} in host memory", "", human_bytes(r.host_bytes));
  if (r.copied_bytes > 0) {
    fmt::print(out, ", {} copied a step: {:.2f} ms at least, {:.1f} GB/s", human_bytes(r.copied_bytes), r.least_copy_seconds * 1e3,
               static_cast<double>(r.copied_bytes) / r.least_copy_seconds * 1e-9);
  }
  fmt::print(out, "\n");
}

void print_row(std::FILE* out, const StepFlags& flags, const StepBenchResult& r, const Spread& seconds, const Peaks& peaks) {
  const double rate = r.flops / seconds.median;
  fmt::print(out, "{:>12} {:>10.0f} {:>9.2f} {:>17} {:>10.2f} {:>8.1f} {:>8} {:>10} {:>8.4f}\n",
             fmt::format("{} x {}", flags.step.batch, flags.step.length), static_cast<double>(r.tokens) / seconds.median,
             seconds.median * 1e3, fmt::format("{:.2f} - {:.2f}", seconds.min * 1e3, seconds.max * 1e3),
             r.record_seconds * 1e3, rate * 1e-12, peaks.flops > 0 ? fmt::format("{:.1f}%", 100 * rate / peaks.flops) : "?",
             human_bytes(r.peak_bytes), r.loss);
  std::fflush(out);
}

int run(StepFlags flags) {
  flags.step.config = flags.shape.config();
  flags.step.residency = flags.residency.of(flags.step.config.num_layers);
  flags.step.stream = flags.residency.stream();
  if (flags.train_head) {
    flags.step.head = {.moments = flags.head_moments == "8bit" ? HeadMoments::eight_bit : HeadMoments::f32,
                       .place = flags.head_state == "host" ? MemoryPlace::host : MemoryPlace::device};
  }
  BenchReport report("step", flags.bench, settings_of(flags));
  const std::size_t rows = std::max(flags.batch.size(), flags.length.size());
  for (std::size_t i = 0; i < rows; ++i) {
    flags.step.batch = flags.batch[std::min(i, flags.batch.size() - 1)];
    flags.step.length = flags.length[std::min(i, flags.length.size() - 1)];
    gpu::Device device = flags.bench.device.open();
    flags.step.path = flags.bench.device.path(device.info());
    const Peaks peaks = flags.bench.peaks(device.info());
    report.begin(device, flags.step.path);
    if (i == 0) print_head(report.table(), flags);
    const StepBenchResult r = bench_step(device, flags.step);
    const Spread seconds = spread_of(r.seconds);
    print_row(report.table(), flags, r, seconds, peaks);
    print_copies(report.table(), r);
    Json row = {{"shape", fmt::format("{}x{}", flags.step.batch, flags.step.length)},
                {"batch", flags.step.batch},
                {"length", flags.step.length},
                {"tokens_per_second", static_cast<double>(r.tokens) / seconds.median},
                {"record_seconds", r.record_seconds},
                {"flops", r.flops},
                {"required_flops", r.required_flops},
                {"memory_bytes", r.peak_bytes},
                {"host_bytes", r.host_bytes},
                {"copied_bytes", r.copied_bytes},
                {"least_copy_seconds", r.copied_bytes > 0 ? Json(r.least_copy_seconds) : Json()},
                {"loss", r.loss},
                {"kernels", print_kernels(report.table(), r.kernels, peaks)}};
    put_rates(row, seconds, r.flops, 0, peaks);
    report.add(std::move(row));
  }
  report.finish();
  return exit_done;
}

}  // namespace

void add_bench_step(CLI::App& bench, Action& action) {
  auto flags = std::make_shared<StepFlags>();
  CLI::App* step = bench.add_subcommand(
      "step", "Times whole training steps over made-up weights and tokens; no files are needed.\n"
              "Every token is trained. TFLOP/s counts all arithmetic, also what gradient checkpointing computes again.\n"
              "With --profile a table by kernel follows each row; docs/performance.md explains the columns.");
  flags->shape.add_to(*step);
  step->add_option("--batch", flags->batch, "Segments of a step; several values give several rows")->capture_default_str();
  step->add_option("--length", flags->length, "Tokens of a segment; several values give several rows")->capture_default_str();
  step->add_option("--lora-rank", flags->step.lora_rank, "Rank of the adapters")->capture_default_str()->check(CLI::Range(1, 256));
  step->add_option("--steps", flags->step.steps, "Timed steps; the median is shown")->capture_default_str()->check(CLI::Range(1, 1000));
  step->add_flag("--gradient-checkpointing", flags->step.gradient_checkpointing, "Keep each layer's input alone");
  flags->residency.add_to(*step, ResidencyFlags::Cached::offered);
  step->add_option("--head-chunk", flags->step.head_chunk, "Rows of logits at a time");
  step->add_flag("--train-head", flags->train_head, "Train the head too");
  step->add_option("--head-moments", flags->head_moments, "Its moments")->check(CLI::IsMember({"f32", "8bit"}))->capture_default_str();
  step->add_option("--head-state", flags->head_state, "Where its values and moments are kept")
      ->check(CLI::IsMember({"device", "host"}))->capture_default_str();
  flags->bench.add_to(*step);
  step->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
