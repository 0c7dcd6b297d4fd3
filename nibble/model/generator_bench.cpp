#include "nibble/model/generator_bench.h"

#include "nibble/base/error.h"
#include "nibble/base/relative_error.h"
#include "nibble/base/rng.h"
#include "nibble/model/next_token.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;
using Tokens = std::vector<std::uint32_t>;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Of a projection, by a token.
double matrices_read(const ModelConfig& config, Projection p) { return matrices_of(config, p) > 1 ? config.experts.per_token : 1; }

ModelState make_state(gpu::Device& device, const GeneratorBenchOptions& options) {
  StateOptions of{.path = options.path, .trainable = false, .residency = options.residency, .stream = options.stream};
  if (options.lora_rank) of.lora = LoraConfig{.rank = options.lora_rank, .lora_alpha = 2.0 * options.lora_rank, .target_modules = usual_targets(options.config)};
  ModelState state = ModelState::made_up(device, options.config, of);
  if (options.lora_rank) make_up_adapters(state);
  return state;
}

class Bench {
 public:
  Bench(gpu::Device& device, const GeneratorBenchOptions& options)
      : device_(device),
        options_(options),
        state_(make_state(device, options)),
        generator_(state_, {.capacity = options.prompt_length + options.new_tokens, .sequences = options.batch}) {}

  GeneratorBenchResult run() {
    GeneratorBenchResult result{.error = decoding_error(), .allowed = allowed()};
    const auto warm = Clock::now();
    do {
      time_one(nullptr);
    } while (seconds_since(warm) < 0.4);
    for (std::uint32_t i = 0; i < options_.repeats; ++i) time_one(&result);
    result.prompt_flops = prompt_flops();
    result.token_bytes = token_bytes();
    result.peak_bytes = device_.memory().peak;
    return result;
  }

 private:
  // Texts that differ in their first token, so that nothing of the last one is known.
  Tokens made_up_text(std::uint32_t count) {
    Tokens text(count);
    for (std::uint32_t& token : text) token = rng_.below(options_.config.vocab_size);
    text[0] = texts_++ % options_.config.vocab_size;
    return text;
  }

  std::vector<Tokens> made_up_texts(std::uint32_t length) {
    std::vector<Tokens> texts(options_.batch);
    for (Tokens& text : texts) text = made_up_text(length);
    return texts;
  }

  static std::vector<Generator::Text> places_of(std::span<const Tokens> texts, std::uint32_t length) {
    std::vector<Generator::Text> places;
    for (const Tokens& text : texts) places.push_back({static_cast<std::uint32_t>(places.size()), std::span(text).first(length)});
    return places;
  }

  double decoding_error() {
    constexpr std::uint32_t most_prompt = 256, most_new = 8;
    const std::uint32_t prompt = std::min(options_.prompt_length, most_prompt), added = std::min(options_.new_tokens, most_new);
    const std::vector<Tokens> texts = made_up_texts(prompt + added);
    std::vector<std::span<const float>> logits;
    for (std::uint32_t length = prompt; length <= prompt + added; ++length) logits = generator_.all_logits(places_of(texts, length));
    std::vector<std::vector<float>> decoded;
    for (const auto& of_one : logits) decoded.emplace_back(of_one.begin(), of_one.end());
    double error = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      generator_.logits(made_up_text(1));  // forgets what the first place holds
      error = std::max(error, relative_error(decoded[i], generator_.logits(texts[i])));
    }
    return error;
  }

  // New tokens are computed in f32, a prompt on the path. Each of a layer's two blocks rounds both operands of its products to
  // f16, which is 2^-10 of a product at most; in f32 sums of up to 2^14 terms lose 2^-17 by rounding at random. The errors of
  // the blocks are independent, so their squares add up.
  double allowed() const {
    return std::sqrt(2.0 * options_.config.num_layers) * (options_.path == ProductPath::f32 ? 0x1p-17 : 0x1p-10);
  }

  void time_one(GeneratorBenchResult* result) {
    std::vector<Tokens> texts = made_up_texts(options_.prompt_length);
    std::vector<TokenSampler> samplers(texts.size(), TokenSampler(options_.sampling));
    std::vector<TokenSampler*> each;
    for (TokenSampler& sampler : samplers) each.push_back(&sampler);
    std::uint32_t length = options_.prompt_length;
    const auto begin = Clock::now();
    const auto logits = generator_.all_logits(places_of(texts, length));
    const double prompt = seconds_since(begin);
    for (std::size_t i = 0; i < texts.size(); ++i) texts[i].push_back(samplers[i].next(logits[i], texts[i]));
    for (; length < options_.prompt_length + options_.new_tokens; ++length) {
      const std::vector<std::uint32_t> next = next_tokens(generator_, each, places_of(texts, length + 1));
      for (std::size_t i = 0; i < texts.size(); ++i) texts[i].push_back(next[i]);
    }
    if (!result) return;
    result->prompt_seconds.push_back(prompt);
    result->token_seconds.push_back((seconds_since(begin) - prompt) / options_.new_tokens);
  }

  double prompt_flops() const {
    const ModelConfig& config = options_.config;
    const double tokens = options_.prompt_length, pairs = tokens * (tokens + 1) / 2;
    double weights = 0;
    for (const Projection p : all_projections) {
      const auto [out, in] = projection_dims(config, p);
      weights += matrices_read(config, p) * out * in;
      if (matrices_of(config, p) == 1) weights += 1.0 * options_.lora_rank * (out + in);
    }
    const double layers = config.num_layers * (2 * tokens * weights + 4 * pairs * config.num_heads * config.head_dim);
    return options_.batch * (layers + 2.0 * config.vocab_size * config.hidden_size);
  }

  double token_bytes() const {
    const ModelConfig& config = options_.config;
    const double length = options_.prompt_length + (options_.new_tokens + 1) / 2.0;
    const double scale = options_.stream.double_quant ? 1 + 8.0 / 256 : 4;
    double layer = 2.0 * static_cast<double>(size_of(generator_.key_dtype())) * options_.batch * length * config.num_kv_heads * config.head_dim;
    for (const Projection p : all_projections) {
      const auto [out, in] = projection_dims(config, p);
      layer += matrices_read(config, p) * out * in * (0.5 + scale / 64);
      if (matrices_of(config, p) == 1) layer += 4.0 * options_.lora_rank * (out + in);
    }
    return config.num_layers * layer + static_cast<double>(state_.weights().head.data.bytes());
  }

  gpu::Device& device_;
  const GeneratorBenchOptions& options_;
  ModelState state_;
  Generator generator_;
  Rng rng_{2};
  std::uint32_t texts_ = 0;
};

}  // namespace

void make_up_adapters(ModelState& state) {
  Rng rng(1);
  for (LoraLayer& layer : state.edit_lora()) {
    for (const Projection p : all_projections) {
      for (float& value : layer.at(p).b) value = rng.uniform(-0.02f, 0.02f);
    }
  }
}

GeneratorBenchResult bench_generator(gpu::Device& device, const GeneratorBenchOptions& options) {
  const std::uint64_t positions = options.config.max_position_embeddings;
  check<UsageError>(std::uint64_t{options.prompt_length} + options.new_tokens <= positions, "--prompt-length",
                    "A prompt of {} and {} new tokens exceed the model's {} positions.", options.prompt_length,
                    options.new_tokens, positions);
  return Bench(device, options).run();
}

}  // namespace nibble
