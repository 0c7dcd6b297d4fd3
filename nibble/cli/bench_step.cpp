#include "nibble/cli/bench.h"
#include "nibble/cli/residency_flags.h"
#include "nibble/io/available_memory.h"
#include "nibble/report/progress.h"
#include "nibble/train/placement.h"
#include "nibble/train/step_bench.h"

#include <fmt/format.h>

namespace nibble::cli {
namespace {

struct StepFlags {
  BenchFlags bench;
  ShapeFlags shape;
  std::vector<std::uint32_t> batch = {1}, length = {512};
  StepBenchOptions step;
  ResidencyFlags residency{.name = "auto"};
  std::optional<std::uint32_t> offload_inputs;
  bool train_head = false, plan_alone = false;
  std::string gradient_checkpointing, shared_decode = "auto", vram_limit, ram_limit;
  std::string lora_moments = "f32", lora_state = "auto";
  std::string head_moments = "f32", head_state = "device";
};

// Without a limit nothing is given up unless it is asked for.
std::string checkpointing_word(const StepFlags& flags) {
  if (!flags.gradient_checkpointing.empty()) return flags.gradient_checkpointing;
  return flags.vram_limit.empty() ? "off" : "auto";
}

// The options of a training run that a plan looks at.
TrainOptions train_options(const StepFlags& flags) {
  TrainOptions options;
  options.lora.rank = flags.step.lora_rank;
  options.lora.target_modules = usual_targets(flags.step.config);
  options.max_length = flags.step.length;
  options.gradient_checkpointing = checkpointing_of(checkpointing_word(flags));
  options.residency = flags.residency.choice();
  options.stream_layers = flags.residency.layers;
  options.stream = flags.residency.stream();
  if (flags.shared_decode != "auto") options.shared_decode = flags.shared_decode == "on";
  if (!flags.vram_limit.empty()) options.vram_limit = memory_limit_of(flags.vram_limit);
  if (!flags.ram_limit.empty()) options.ram_limit = memory_limit_of(flags.ram_limit, "--ram-limit");
  options.offload_inputs = flags.offload_inputs;
  if (!options.vram_limit.said() && !flags.offload_inputs) options.offload_inputs = 0;
  options.mlp_chunk = flags.step.mlp_chunk;
  options.head_chunk = flags.step.head_chunk;
  options.lora_moments = moment_kind_of(flags.lora_moments);
  if (flags.lora_state != "auto") options.lora_state = flags.lora_state == "host" ? MemoryPlace::host : MemoryPlace::device;
  options.train_head = flags.train_head;
  if (!flags.train_head) return options;
  options.head_moments = moment_kind_of(flags.head_moments);
  options.head_state = flags.head_state == "host" ? MemoryPlace::host : MemoryPlace::device;
  return options;
}

// What is not said of the two kinds of memory is not limited.
MemoryBudget budget_of(const TrainOptions& options, const gpu::AdapterInfo& info) {
  const MemoryBudget said = memory_budget(options, info, options.ram_limit.said() ? available_memory() : std::nullopt);
  MemoryBudget budget = options.vram_limit.said() ? said : MemoryBudget{};
  budget.ram = said.ram;
  budget.ram_promised = said.ram_promised;
  return budget;
}

// Plans the step under the limits; the device then holds that of its memory.
Placement plan_step(gpu::Device& device, StepFlags& flags) {
  const TrainOptions options = train_options(flags);
  const MemoryBudget budget = budget_of(options, device.info());
  StepBenchOptions& step = flags.step;
  const Placement placement = place(options, device, step.config, step.path, {.tokens = step.tokens(), .labels = step.tokens()}, budget,
                                    usual_rates(device.info(), step.path, step.tokens()));
  device.limit_memory(budget.bytes);
  step.residency = placement.model.residency;
  step.stream = placement.model.stream;
  step.activations = placement.model.activations;
  step.one_decoded_room = placement.model.one_decoded_room;
  step.mlp_chunk = placement.model.mlp_chunk;
  step.offloaded_inputs = placement.model.offloaded_inputs;
  step.head_chunk = placement.model.head_chunk;
  step.head = placement.head;
  step.moments = placement.moments;
  return placement;
}

Json plan_json(const StepFlags& flags, const Placement& placement) {
  const MemoryPlan& m = placement.memory;
  return {{"bytes", m.total()},
          {"classes", {{"frozen_weights", m.frozen_weights}, {"decoded_weights", m.decoded_weights}, {"adapters", m.adapters},
                       {"layer_inputs", m.layer_inputs}, {"activations", m.activations}, {"scratch", m.scratch}, {"head", m.head},
                       {"trained_head", m.trained_head}, {"workspace", m.workspace}}},
          {"host_bytes", m.host_total()},
          {"disk_bytes", m.disk_weights},
          {"layers", describe(placement.model.activations, flags.step.config.num_layers)},
          {"offloaded_inputs", placement.model.offloaded_inputs},
          {"one_decoded_room", placement.model.one_decoded_room},
          {"mlp_chunk", placement.model.mlp_chunk},
          {"head_chunk", placement.model.head_chunk},
          {"lora_state", placement.moments.place == MemoryPlace::host ? "host" : "device"},
          {"embedding_on_host", placement.model.stream.embedding},
          {"head_on_host", placement.model.stream.head},
          {"streamed", count_of(placement.model.residency, flags.step.config.num_layers, Residency::streamed)}};
}

Json settings_of(const StepFlags& flags) {
  return {{"model", flags.shape.label()},
          {"lora_rank", flags.step.lora_rank},
          {"gradient_checkpointing", checkpointing_word(flags)},
          {"double_quant", flags.residency.double_quant},
          {"residency", flags.residency.name},
          {"stream_memory", flags.residency.memory},
          {"stream_slots", flags.residency.slots},
          {"embedding_memory", flags.residency.embedding},
          {"head_memory", flags.residency.head},
          {"head_bits", flags.residency.head_bits},
          {"lora", {{"moments", flags.lora_moments}, {"state", flags.lora_state}}},
          {"head", flags.train_head ? Json{{"moments", flags.head_moments}, {"state", flags.head_state}} : Json()},
          {"profile", flags.bench.device.profile}};
}

std::string moments_text(const StepFlags& flags) {
  std::string text = flags.lora_moments == "f32" ? "" : ", moments of 8 bits";
  if (flags.lora_state == "host") text += text.empty() ? ", moments on the host" : " on the host";
  return text;
}

std::string residency_text(const StepFlags& flags) {
  const std::uint32_t streamed = count_of(flags.residency.of(flags.step.config.num_layers), flags.step.config.num_layers, Residency::streamed);
  std::string text = flags.residency.name == "cached" ? ", cached" : "";
  if (flags.residency.double_quant) text += ", scales in 8 bits";
  if (flags.residency.embedding == "host") text += ", embedding on the host";
  if (flags.residency.head == "host") text += ", head on the host";
  if (flags.residency.head_bits < 16) text += fmt::format(", head in {} bits", flags.residency.head_bits);
  if (streamed > 0) text += fmt::format(", {} of {} layers streamed ({})", streamed, flags.step.config.num_layers, flags.residency.memory);
  return text;
}

void print_head(std::FILE* out, const StepFlags& flags) {
  fmt::print(out, "{}, rank {}{}{}{}\n", flags.shape.label(), flags.step.lora_rank, moments_text(flags),
             (checkpointing_word(flags) == "off" ? "" : ", gradient checkpointing " + checkpointing_word(flags)) + residency_text(flags),
             flags.train_head ? fmt::format(", head trained ({}, {})", flags.head_moments, flags.head_state) : "");
  fmt::print(out, "{:>12} {:>10} {:>9} {:>17} {:>10} {:>8} {:>8} {:>10} {:>8}\n", "batch x len", "tokens/s", "step ms",
             "from - to", "record ms", "TFLOP/s", "of peak", "memory", "loss");
}

// What was sent to the GPU, in the least time that copies alone take.
void print_copies(std::FILE* out, const StepBenchResult& r) {
  if (r.host_bytes == 0) return;
  fmt::print(out, "{:>12} {} in host memory", "", human_bytes(r.host_bytes));
  if (r.disk_bytes > 0) fmt::print(out, ", {} on disk, {} read a step", human_bytes(r.disk_bytes), human_bytes(r.read_bytes));
  if (r.copied_bytes > 0) fmt::print(out, ", {} copied a step", human_bytes(r.copied_bytes));
  if (r.least_copy_seconds > 0) {
    fmt::print(out, ": {:.2f} ms at least, {:.1f} GB/s", r.least_copy_seconds * 1e3,
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

void print_choice(std::FILE* out, const StepFlags& flags, const Placement& placement) {
  const std::uint32_t layers = flags.step.config.num_layers;
  const MemoryPlan& m = placement.memory;
  fmt::print(out, "{:>12} {} planned: weights {}, decoded {}, adapter {}, layer inputs {}, activations {}, scratch {}, head {}\n",
             flags.plan_alone ? fmt::format("{} x {}", flags.step.batch, flags.step.length) : "", human_bytes(m.total()),
             human_bytes(m.frozen_weights), human_bytes(m.decoded_weights), human_bytes(m.adapters), human_bytes(m.layer_inputs),
             human_bytes(m.activations), human_bytes(m.scratch + m.workspace), human_bytes(m.head + m.trained_head));
  fmt::print(out, "{:>12} of {} layers {}; {} streamed, inputs of {} offloaded, decoded into {}, MLPs of {}, logits of {} rows at a time{}; RAM {}\n", "", layers,
             describe(placement.model.activations, layers), count_of(placement.model.residency, layers, Residency::streamed),
             placement.model.offloaded_inputs, placement.model.one_decoded_room ? "one room" : "a room each",
             placement.model.mlp_chunk > 0 ? fmt::format("{} rows at a time", placement.model.mlp_chunk) : "all rows", placement.model.head_chunk,
             describe_tables(placement.model.stream, flags.step.config.tie_word_embeddings) +
                 (placement.moments.place == MemoryPlace::host ? ", moments on the host" : ""),
             human_bytes(m.host_total()) + (m.disk_weights > 0 ? ", disk " + human_bytes(m.disk_weights) : ""));
}

void time_row(gpu::Device& device, const StepFlags& flags, Json& row, std::FILE* table, const Peaks& peaks) {
  StepBenchOptions step = flags.step;
  step.after_step = [&device, done = 0](double seconds) mutable {
    ++done;
    if (seconds > 2) fmt::print(stderr, "step {}{}: {:.1f} s, {}\n", done, done == 1 ? " (warms up)" : "", seconds, human_bytes(device.memory().peak));
  };
  const StepBenchResult r = bench_step(device, step);
  const Spread seconds = spread_of(r.seconds);
  print_row(table, flags, r, seconds, peaks);
  print_copies(table, r);
  row.update(Json{{"tokens_per_second", static_cast<double>(r.tokens) / seconds.median},
                  {"record_seconds", r.record_seconds},
                  {"flops", r.flops},
                  {"required_flops", r.required_flops},
                  {"memory_bytes", r.peak_bytes},
                  {"host_bytes", r.host_bytes},
                  {"disk_bytes", r.disk_bytes},
                  {"read_bytes", r.read_bytes},
                  {"copied_bytes", r.copied_bytes},
                  {"least_copy_seconds", r.least_copy_seconds > 0 ? Json(r.least_copy_seconds) : Json()},
                  {"driver_bytes", r.driver_bytes ? Json(*r.driver_bytes) : Json()},
                  {"loss", r.loss},
                  {"kernels", print_kernels(table, r.kernels, peaks)}});
  put_rates(row, seconds, r.flops, 0, peaks);
}

int run(StepFlags flags) {
  flags.step.config = flags.shape.config();
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
    StepFlags row_flags = flags;
    const Placement placement = plan_step(device, row_flags);
    Json row = {{"shape", fmt::format("{}x{}", flags.step.batch, flags.step.length)},
                {"batch", flags.step.batch},
                {"length", flags.step.length},
                {"plan", plan_json(row_flags, placement)}};
    if (!flags.plan_alone) time_row(device, row_flags, row, report.table(), peaks);
    if (flags.plan_alone || !flags.vram_limit.empty() || !flags.ram_limit.empty()) print_choice(report.table(), row_flags, placement);
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
              "With --profile a table by kernel follows each row; docs/bench.md explains the columns.");
  flags->shape.add_to(*step);
  step->add_option("--batch", flags->batch, "Segments of a step; several values give several rows")->capture_default_str()->check(CLI::Range(1, 1 << 16));
  step->add_option("--length", flags->length, "Tokens of a segment; several values give several rows")->capture_default_str()->check(CLI::Range(2, 1 << 20));
  step->add_option("--lora-rank", flags->step.lora_rank, "Rank of the adapters")->capture_default_str()->check(CLI::Range(1, 256));
  step->add_option("--lora-moments", flags->lora_moments, "AdamW's moments of the adapters")->check(CLI::IsMember({"f32", "8bit"}))->capture_default_str();
  step->add_option("--lora-state", flags->lora_state, "Where they are kept: device, host, or auto by the limit")
      ->check(CLI::IsMember({"auto", "device", "host"}))->capture_default_str();
  step->add_option("--steps", flags->step.steps, "Timed steps; the median is shown")->capture_default_str()->check(CLI::Range(1, 1000));
  step->add_option("--gradient-checkpointing", flags->gradient_checkpointing,
                   "What is computed again: off, mlp (the MLP's half of each layer), on (all but each layer's input; meant where no\n"
                   "word follows), auto (under --vram-limit what it needs). Not given: auto under --vram-limit, else off")
      ->expected(0, 1)->default_str("on")->check(CLI::IsMember({"off", "mlp", "on", "auto"}));
  step->add_option("--vram-limit", flags->vram_limit, "GPU memory that the step may take, as 2GiB; see nibble train");
  step->add_option("--ram-limit", flags->ram_limit, "Host memory that it may take, likewise");
  step->add_flag("--plan", flags->plan_alone, "Show the memory that the step would take, class by class, and time nothing");
  step->add_option("--shared-decode", flags->shared_decode, "Decode a layer's projections into the same memory: on, off, or auto by the limit")
      ->check(CLI::IsMember({"auto", "on", "off"}))->capture_default_str();
  step->add_option("--offload-inputs", flags->offload_inputs, "Layers whose input lies in host memory between the passes");
  flags->residency.add_to(*step, ResidencyFlags::Cached::offered);
  step->add_option("--mlp-chunk", flags->step.mlp_chunk, "Rows whose MLP is computed at a time; 0: all, and fewer where --vram-limit needs it");
  step->add_option("--head-chunk", flags->step.head_chunk, "Rows of logits at a time");
  step->add_flag("--train-head", flags->train_head, "Train the head too");
  step->add_option("--head-moments", flags->head_moments, "Its moments")->check(CLI::IsMember({"f32", "8bit"}))->capture_default_str();
  step->add_option("--head-state", flags->head_state, "Where its values and moments are kept")
      ->check(CLI::IsMember({"device", "host"}))->capture_default_str();
  flags->bench.add_to(*step);
  step->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
