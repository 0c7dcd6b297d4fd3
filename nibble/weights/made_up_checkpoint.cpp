#include "nibble/weights/made_up_checkpoint.h"

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/base/rng.h"
#include "nibble/io/atomic.h"
#include "nibble/io/shards.h"
#include "nibble/weights/checkpoint_check.h"

#include <algorithm>

namespace nibble {
namespace {

std::vector<TensorSpec> specs_of(const ModelConfig& config) {
  std::vector<TensorSpec> specs;
  for (const BaseTensor& tensor : base_tensors(config)) specs.push_back({tensor.name, DType::bf16, tensor.shape});
  return specs;
}

Json json_of(const ModelConfig& config) {
  Json json = {{"architectures", {config.family.architecture}},
          {"model_type", config.family.model_type},
          {"dtype", "bfloat16"},
          {"hidden_act", "silu"},
          {"attention_bias", false},
          {"hidden_size", config.hidden_size},
          {"num_hidden_layers", config.num_layers},
          {"vocab_size", config.vocab_size},
          {"num_attention_heads", config.num_heads},
          {"num_key_value_heads", config.num_kv_heads},
          {"head_dim", config.head_dim},
          {"intermediate_size", config.intermediate_size},
          {"max_position_embeddings", config.max_position_embeddings},
          {"rms_norm_eps", config.rms_norm_eps},
          {"rope_theta", config.rope.theta},
          {"tie_word_embeddings", config.tie_word_embeddings},
          {"eos_token_id", config.vocab_size - 1}};
  if (!config.has_experts()) return json;
  json["num_experts"] = config.experts.count;
  json["num_experts_per_tok"] = config.experts.per_token;
  json["moe_intermediate_size"] = config.experts.intermediate_size;
  json["norm_topk_prob"] = config.experts.normalised;
  return json;
}

// Normal values with transformers' deviation. They repeat after a prime number, so that no two rows are alike.
std::vector<std::uint16_t> made_up_values() {
  std::vector<std::uint16_t> values(2'097'143);
  Rng rng(1);
  for (auto& value : values) value = f32_to_bf16(0.02f * rng.normal());
  return values;
}

}  // namespace

std::uint64_t checkpoint_bytes(const ModelConfig& config) {
  std::uint64_t bytes = 0;
  for (const TensorSpec& spec : specs_of(config)) bytes += bytes_of(spec);
  return bytes;
}

void write_made_up_checkpoint(const fs::path& folder, const ModelConfig& config, std::uint64_t max_shard_bytes, const std::function<void(double)>& progress) {
  const std::uint64_t room = fs::space(folder).available, margin = std::uint64_t{64} << 20, needed = checkpoint_bytes(config);
  check<DataError>(room >= needed + margin, folder.string(), "The made-up model needs {} bytes; the disk has {} left.",
                   needed + margin, room);
  write_file_atomically(folder / "config.json", write_json(json_of(config)) + "\n");
  const auto values = made_up_values();
  std::size_t at = 0;
  std::uint64_t written = 0;
  save_shards(folder, specs_of(config), max_shard_bytes, [&](const TensorSpec& tensor, SafetensorsWriter& writer) {
    if (tensor.shape.size() == 1) {  // a norm
      const std::vector<std::uint16_t> ones(bytes_of(tensor) / 2, f32_to_bf16(1.0f));
      return writer.append(std::as_bytes(std::span(ones)));
    }
    for (std::uint64_t left = bytes_of(tensor) / 2; left > 0;) {
      const std::size_t count = std::min<std::uint64_t>(left, values.size() - at);
      writer.append(std::as_bytes(std::span(values).subspan(at, count)));
      at = (at + count) % values.size();
      left -= count;
      written += 2 * count;
      if (progress) progress(static_cast<double>(written) / static_cast<double>(needed));
    }
  });
}

}  // namespace nibble
