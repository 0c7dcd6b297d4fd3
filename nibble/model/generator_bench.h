#pragma once

#include "nibble/model/generator.h"
#include "nibble/model/sampler.h"

#include <cstdint>
#include <vector>

namespace nibble {

// Generation over made-up weights from made-up prompts, to measure without files.
struct GeneratorBenchOptions {
  ModelConfig config;
  ProductPath path = ProductPath::f32;
  std::uint32_t lora_rank = 0;  // 0: without an adapter
  std::uint32_t batch = 1;  // texts that are continued side by side
  std::uint32_t prompt_length = 512, new_tokens = 64;
  std::uint32_t repeats = 5;
  SamplingOptions sampling = {};  // of the new tokens
  std::vector<Residency> residency = {};  // by layer; empty: all resident
  StreamOptions stream = {};
};

struct GeneratorBenchResult {
  // Logits after a prompt and some tokens, one at a time, against those of one pass over all: relative 2-norm.
  double error = 0, allowed = 0;
  std::vector<double> prompt_seconds;  // of each repeat, from the prompts to the logits of all on the host
  std::vector<double> token_seconds;   // of each repeat, the mean of its steps: a new token of each text, chosen on the host
  double prompt_flops = 0;
  double token_bytes = 0;  // that such a step must read at least: codes and scales of the projections, head, adapters, and keys
                           // and values of the mean length of each text
  std::uint64_t peak_bytes = 0;
};

// Gives new adapters, whose B is zero and would hide their products, a B of random values.
void make_up_adapters(ModelState& state);

// UsageError where the model has fewer positions than prompt and new tokens.
GeneratorBenchResult bench_generator(gpu::Device& device, const GeneratorBenchOptions& options);

}  // namespace nibble
