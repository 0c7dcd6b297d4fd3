#include "nibble/cli/bench.h"
#include "nibble/cli/residency_flags.h"
#include "nibble/cli/sampling_flags.h"
#include "nibble/model/generator_bench.h"
#include "nibble/report/progress.h"

#include <fmt/format.h>

namespace nibble::cli {
namespace {

struct GenerateFlags {
  BenchFlags bench;
  ShapeFlags shape;
  ResidencyFlags residency;
  SamplingFlags sampling;
  std::vector<std::uint32_t> batch = {1}, prompt_length = {512};
  GeneratorBenchOptions generator;
};

void print_head(std::FILE* out, const GenerateFlags& flags) {
  fmt::print(out, "{}, {}, {} new tokens\n", flags.shape.label(),
             flags.generator.lora_rank ? fmt::format("rank {}", flags.generator.lora_rank) : "no adapter",
             flags.generator.new_tokens);
  fmt::print(out, "{:>14} {:>15} {:>9} {:>8} {:>8} {:>12} {:>9} {:>8} {:>8} {:>10} {:>8} {:>6}\n", "batch x prompt", "prompt tokens/s",
             "ms", "TFLOP/s", "of peak", "new tokens/s", "step ms", "GB/s", "of peak", "memory", "error", "");
}

std::string share_of(const Json& rates) {
  return rates["share_of_peak"].is_null() ? "?" : fmt::format("{:.1f}%", 100 * rates["share_of_peak"].get<double>());
}

void print_row(std::FILE* out, const Json& row) {
  const Json &prompt = row["prompt"], &token = row["token"];
  fmt::print(out, "{:>14} {:>15.0f} {:>9.2f} {:>8.1f} {:>8} {:>12.1f} {:>9.3f} {:>8.0f} {:>8} {:>10} {:>8.1e} {:>6}\n",
             fmt::format("{} x {}", row["batch"].get<std::uint32_t>(), row["prompt_length"].get<std::uint32_t>()), prompt["tokens_per_second"].get<double>(),
             prompt["seconds"]["median"].get<double>() * 1e3, prompt["tflops"].get<double>(), share_of(prompt),
             token["tokens_per_second"].get<double>(), token["seconds"]["median"].get<double>() * 1e3,
             token["gbs"].get<double>(), share_of(token), human_bytes(row["memory_bytes"].get<std::uint64_t>()),
             row["error"].get<double>(), row["correct"].get<bool>() ? "ok" : "WRONG");
  std::fflush(out);
}

Json row_of(const GenerateFlags& flags, const GeneratorBenchResult& r, const Peaks& peaks) {
  const GeneratorBenchOptions& of = flags.generator;
  Json row = {{"shape", fmt::format("{}x{}+{}", of.batch, of.prompt_length, of.new_tokens)},
              {"batch", of.batch},
              {"prompt_length", of.prompt_length},
              {"new_tokens", of.new_tokens},
              {"correct", r.error <= r.allowed},
              {"error", r.error},
              {"allowed", r.allowed},
              {"prompt", Json::object()},
              {"token", Json::object()},
              {"memory_bytes", r.peak_bytes}};
  const Spread prompt = spread_of(r.prompt_seconds), token = spread_of(r.token_seconds);
  put_rates(row["prompt"], prompt, r.prompt_flops, 0, peaks);
  row["prompt"]["tokens_per_second"] = of.batch * of.prompt_length / prompt.median;
  // A few tokens' arithmetic is nothing beside what it reads.
  put_rates(row["token"], token, 0, r.token_bytes, peaks);
  row["token"].erase("tflops");
  row["token"]["bytes"] = r.token_bytes;
  row["token"]["tokens_per_second"] = of.batch / token.median;
  return row;
}

int run(GenerateFlags flags) {
  flags.generator.sampling = flags.sampling.options({});
  flags.generator.config = flags.shape.config();
  flags.generator.residency = flags.residency.of(flags.generator.config.num_layers);
  flags.generator.stream = flags.residency.stream();
  const std::uint32_t streamed = count_of(flags.generator.residency, flags.generator.config.num_layers, Residency::streamed);
  BenchReport report("generate", flags.bench, {{"model", flags.shape.label()},
                                               {"lora_rank", flags.generator.lora_rank},
                                               {"streamed_layers", streamed},
                                               {"stream_memory", flags.residency.memory},
                                               {"double_quant", flags.residency.double_quant},
                                               {"temperature", flags.generator.sampling.temperature},
                                               {"top_k", flags.generator.sampling.top_k},
                                               {"top_p", flags.generator.sampling.top_p},
                                               {"min_p", flags.generator.sampling.min_p},
                                               {"repetition_penalty", flags.generator.sampling.repetition_penalty}});
  bool passed = true;
  const std::size_t rows = std::max(flags.batch.size(), flags.prompt_length.size());
  for (std::size_t i = 0; i < rows; ++i) {
    flags.generator.batch = flags.batch[std::min(i, flags.batch.size() - 1)];
    flags.generator.prompt_length = flags.prompt_length[std::min(i, flags.prompt_length.size() - 1)];
    gpu::Device device = flags.bench.device.open();
    flags.generator.path = flags.bench.device.path(device.info());
    report.begin(device, flags.generator.path);
    if (i == 0) print_head(report.table(), flags);
    Json row = row_of(flags, bench_generator(device, flags.generator), flags.bench.peaks(device.info()));
    print_row(report.table(), row);
    row["kernels"] = print_kernels(report.table(), profile_of_each(device.profile(), {}), flags.bench.peaks(device.info()));
    passed = passed && row["correct"].get<bool>();
    report.add(std::move(row));
  }
  report.finish();
  return passed ? exit_done : exit_device;
}

}  // namespace

void add_bench_generate(CLI::App& bench, Action& action) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* generate = bench.add_subcommand(
      "generate", "Times generation over made-up weights: reading a prompt, then one token after the other.\n"
                  "Logits of tokens that came one at a time are compared first with those of one pass over the whole text; exit\n"
                  "code 3 where they are WRONG. GB/s counts what a token of each text must read at least: codes and\n"
                  "scales of all projections, the head, the adapters, and keys and values so far.");
  flags->shape.add_to(*generate);
  generate->add_option("--batch", flags->batch, "Texts that are continued side by side, as with generate --prompts; several values give several rows")
      ->capture_default_str()->check(CLI::Range(1, 256));
  generate->add_option("--prompt-length", flags->prompt_length, "Tokens of each prompt, likewise")
      ->capture_default_str()->check(CLI::Range(1, 1 << 20));
  generate->add_option("--new-tokens", flags->generator.new_tokens, "Tokens that follow each, one at a time")
      ->capture_default_str()->check(CLI::Range(1, 1 << 20));
  generate->add_option("--lora-rank", flags->generator.lora_rank, "Rank of an adapter; 0: none")
      ->capture_default_str()->check(CLI::Range(0, 256));
  generate->add_option("--repeats", flags->generator.repeats, "Timed texts; the median is shown")
      ->capture_default_str()->check(CLI::Range(1, 1000));
  flags->sampling.add_to(*generate, "Without it 0, or 1 with one of the next three, whatever the model's files say");
  flags->residency.add_to(*generate, ResidencyFlags::Cached::left_out);
  flags->bench.add_to(*generate);
  generate->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
