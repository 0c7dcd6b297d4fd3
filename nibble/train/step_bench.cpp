#include "nibble/train/step_bench.h"

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/train/optimizer.h"

#include <algorithm>
#include <chrono>
#include <map>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Multiplications and additions of one token.
struct TokenFlops {
  double projections = 0;  // of all layers, one pass
  double adapters = 0;     // one pass
  double attention = 0;    // one pass, half the square
  double head = 0;         // one pass

  TokenFlops(const ModelConfig& config, std::uint32_t rank, std::uint32_t length) {
    for (const Projection p : all_projections) {
      const auto [out, in] = projection_dims(config, p);
      projections += 2.0 * out * in * config.num_layers;
      adapters += 2.0 * rank * (out + in) * config.num_layers;
    }
    attention = 2.0 * length * config.num_heads * config.head_dim * config.num_layers;
    head = 2.0 * config.vocab_size * config.hidden_size;
  }
  // Backward: the frozen products once, those of the adapters twice, attention 2.5 times.
  double step() const { return 2 * projections + 3 * adapters + 3.5 * attention + 2 * head; }
  double again() const { return projections + adapters + attention; }
};

struct MadeUpBatch {
  std::vector<std::uint32_t> tokens, position, begin, end, label_rows, labels;

  MadeUpBatch(const StepBenchOptions& options) {
    Rng rng(1);
    for (std::uint32_t segment = 0; segment < options.batch; ++segment) {
      const auto first = static_cast<std::uint32_t>(tokens.size());
      for (std::uint32_t i = 0; i < options.length; ++i) {
        if (i + 1 < options.length) label_rows.push_back(first + i);
        tokens.push_back(rng.below(options.config.vocab_size));
        position.push_back(i);
        begin.push_back(first);
        end.push_back(first + options.length);
      }
    }
    for (const std::uint32_t row : label_rows) labels.push_back(tokens[row + 1]);
  }
  TokenStream stream() const {
    return {.tokens = tokens, .position = position, .segment_begin = begin, .segment_end = end, .label_rows = label_rows,
            .labels = labels};
  }
};

}  // namespace

StepBenchResult bench_step(gpu::Device& device, const StepBenchOptions& options) {
  const DeviceWeights weights = made_up_weights(device, options.config, operand_dtype(options.path));
  LoraAdapter adapter = make_lora_adapter(options.config, {.rank = options.lora_rank, .lora_alpha = 2.0 * options.lora_rank});
  initialise_lora(adapter, 1);
  const LoraWeights lora = upload_lora(device, options.config, adapter, true);
  const std::uint32_t tokens = options.batch * options.length;
  Model model(device, options.config, weights, &lora,
              {.path = options.path, .residency = options.residency,
               .gradient_checkpointing = options.gradient_checkpointing, .max_tokens = tokens, .max_labels = tokens,
               .head_chunk = options.head_chunk});
  Optimizer optimizer(device, {});
  const MadeUpBatch batch(options);

  StepBenchResult result{.tokens = tokens};
  std::uint64_t done = 0;
  Tensor losses;
  const auto step = [&] {
    const auto start = Clock::now();
    gpu::Recorder recorder(device);
    const DeviceStream stream = model.upload(recorder, batch.stream());
    recorder.clear(lora.grads);
    losses = model.loss_and_gradients(recorder, stream, {.factor = 1.0f / static_cast<float>(batch.labels.size())}).loss;
    optimizer.record_step(recorder, lora, 1e-4, ++done);
    recorder.submit();
    result.record_seconds = seconds_since(start);
    device.read<float>(optimizer.norm_and_factor());
    return seconds_since(start);
  };
  const auto warm = Clock::now();
  do {
    step();
  } while (seconds_since(warm) < 0.4);
  std::vector<double> times;
  for (std::uint32_t i = 0; i < options.steps; ++i) times.push_back(step());
  std::sort(times.begin(), times.end());
  result.seconds = times[times.size() / 2];
  const TokenFlops flops(options.config, options.lora_rank, options.length);
  result.required_flops = tokens * flops.step();
  result.flops = result.required_flops + (options.gradient_checkpointing ? tokens * flops.again() : 0.0);
  result.peak_bytes = device.memory().peak;
  for (const float loss : device.read<float>(losses)) result.loss += loss;
  result.loss /= static_cast<double>(batch.labels.size());
  return result;
}

ModelConfig shape_by_name(const std::string& name) {
  const auto qwen3 = [](std::uint32_t hidden, std::uint32_t layers, std::uint32_t heads, std::uint32_t intermediate,
                        bool tied) {
    ModelConfig config;
    config.hidden_size = hidden;
    config.num_layers = layers;
    config.vocab_size = 151936;
    config.num_heads = heads;
    config.num_kv_heads = 8;
    config.head_dim = 128;
    config.intermediate_size = intermediate;
    config.rms_norm_eps = 1e-6f;
    config.rope_theta = 1e6f;
    config.max_position_embeddings = 40960;
    config.tie_word_embeddings = tied;
    return config;
  };
  const std::map<std::string, ModelConfig> shapes = {{"qwen3-0.6b", qwen3(1024, 28, 16, 3072, true)},
                                                     {"qwen3-1.7b", qwen3(2048, 28, 16, 6144, true)},
                                                     {"qwen3-4b", qwen3(2560, 36, 32, 9728, true)},
                                                     {"qwen3-8b", qwen3(4096, 36, 32, 12288, false)}};
  const auto found = shapes.find(name);
  std::string names;
  for (const auto& [known, config] : shapes) names += fmt::format("{}{}", names.empty() ? "" : ", ", known);
  check<UsageError>(found != shapes.end(), "--shape", "\"{}\" is no known shape; there are {}.", name, names);
  return found->second;
}

}  // namespace nibble
