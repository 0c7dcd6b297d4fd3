#include "nibble/train/fingerprint.h"

#include "nibble/base/fnv.h"

#include <algorithm>
#include <array>
#include <vector>

namespace nibble {

namespace {

std::string hash_text(const data::Dataset& file) { return fmt::format("{:016x}", file.hash()); }

// In the units of config.json, with what it leaves out filled in.
Json rope_of(const RopeConfig& rope) {
  constexpr std::array kinds{"default", "linear", "llama3", "yarn"};
  return {{"rope_type", kinds[static_cast<std::size_t>(rope.kind)]},
          {"rope_theta", rope.theta},
          {"factor", rope.factor},
          {"original_max_position_embeddings", rope.original_positions},
          {"low_freq_factor", rope.low_freq_factor},
          {"high_freq_factor", rope.high_freq_factor},
          {"beta_fast", rope.beta_fast},
          {"beta_slow", rope.beta_slow},
          {"attention_factor", rope.attention_factor},
          {"truncate", rope.truncate}};
}

Json tokens_of(const TrainOptions& o) {
  if (o.train_tokens.empty()) return {};
  return {{"tokens", o.train_tokens}, {"head", o.train_tokens_head}, {"plain", o.plain_tokens},
          {"learning_rate", o.tokens_learning_rate ? Json(*o.tokens_learning_rate) : Json()}};
}

// Of the frozen model.
Json base_facts(const TrainOptions& o, const Checkpoint& base, const ModelConfig& config) {
  Json facts = {{"base_hash", base_hash(base)},
                {"double_quant", o.stream.double_quant},
                {"model_type", config.model_type},
                {"rms_norm_eps", config.rms_norm_eps},
                {"sliding_window", config.sliding_window},
                {"rope_parameters", rope_of(config.rope)}};
  if (!config.nope.empty()) facts["nope"] = config.nope;
  facts["head_bits"] = bits_of(o.stream.tables);
  return facts;
}

Json weights_of(const data::DataFiles& files) {
  Json weights;
  if (!files.weighted()) return weights;
  for (const data::DataFile& file : files.files()) weights.push_back(*file.weight);
  return weights;
}

}  // namespace

std::string base_hash(const Checkpoint& base) {
  Fnv1a64 hash;
  std::vector<std::byte> head;
  for (const auto& [name, entry] : base.tensors()) {
    hash.add(name);
    hash.add(entry.tensor->dtype_name);
    hash.add(to_string(entry.tensor->shape));
    head.resize(std::min<std::uint64_t>(4096, entry.tensor->bytes));
    entry.file->read(*entry.tensor, 0, head);
    hash.add({reinterpret_cast<const char*>(head.data()), head.size()});
  }
  return fmt::format("{:016x}", hash.value());
}

Json fingerprint(const TrainOptions& o, const RunData& data, const Checkpoint& base, const ModelConfig& config,
                 std::uint64_t total_steps) {
  Json targets = Json::array();
  for (const Projection p : o.lora.target_modules) targets.push_back(name_of(p));
  if (!o.lora.target_pattern.empty()) targets = o.lora.target_pattern;
  Json facts = {{"lora_rank", o.lora.rank},
          {"lora_alpha", o.lora.lora_alpha},
          {"lora_dropout", o.lora.lora_dropout},
          {"use_rslora", o.lora.use_rslora},
          {"use_dora", o.lora.use_dora},
          {"gaussian_init", o.gaussian_init},
          {"target_modules", targets},
          {"rank_pattern", o.lora.rank_pattern},
          {"alpha_pattern", o.lora.alpha_pattern},
          {"layers_to_transform", o.lora.layers_to_transform},
          {"loss", name_of(o.loss.kind)},
          {"beta", o.loss.takes_pairs() ? Json(o.loss.beta) : Json()},
          {"focal_gamma", o.loss.focal_gamma},
          {"lora_moments", name_of(o.lora_moments)},
          {"train_head", o.train_head},
          {"head_moments", o.train_head ? Json(name_of(o.head_moments)) : Json()},
          {"head_learning_rate", o.head_learning_rate ? Json(*o.head_learning_rate) : Json()},
          {"train_tokens", tokens_of(o)},
          {"neftune_alpha", o.neftune_alpha},
          {"learning_rate", o.learning_rate},
          {"lr_scheduler", name_of(o.lr_scheduler)},
          {"warmup_ratio", o.warmup_ratio},
          {"warmup_steps", o.warmup_steps},
          {"min_lr_ratio", o.min_lr_ratio},
          {"weight_decay", o.adamw.weight_decay},
          {"adam_beta1", o.adamw.adam_beta1},
          {"adam_beta2", o.adamw.adam_beta2},
          {"adam_epsilon", o.adamw.adam_epsilon},
          {"max_grad_norm", o.adamw.max_grad_norm},
          {"loraplus_ratio", o.adamw.loraplus_ratio},
          {"total_steps", total_steps},
          {"batch_size", o.batch_size},
          {"gradient_accumulation", o.gradient_accumulation},
          {"max_length", o.max_length},
          {"packing", o.packing},
          {"shuffle", o.shuffle},
          {"seed", o.seed},
          {"train_on", data::name_of(o.train_on)},
          {"think", data::name_of(o.think)}, {"system", o.system}, {"overflow", data::name_of(o.overflow)},
          {"valid_fraction", o.valid.empty() ? o.valid_fraction : 0.0},
          {"format", data.train.file->form_names()},
          {"map", o.map.text()},
          {"data_weights", weights_of(o.data)},
          {"skip_bad_rows", o.skip_bad_rows},
          {"data_hash", hash_text(*data.train.file)},
          {"valid_hash", data.valid.file ? Json(hash_text(*data.valid.file)) : Json()}};
  facts.update(base_facts(o, base, config));
  return facts;
}

}  // namespace nibble
