#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "nibble/cli/info.h"
#include "nibble/io/json.h"
#include "nibble/model/memory_plan.h"
#include "nibble/report/progress.h"
#include "nibble/text/chat_template.h"
#include "nibble/text/tokenizer.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/peft.h"

#include <fmt/format.h>

#include <set>

namespace nibble::cli {
namespace {

struct ModelFacts {
  ModelConfig config;
  std::uint64_t parameters = 0, projection_parameters = 0;
  std::uint64_t file_bytes = 0, nf4_bytes = 0;
  std::set<std::string> dtypes;
  std::size_t tokens = 0;
  std::vector<std::pair<std::string, std::string>> special;  // "eos", "<|im_end|> (4095)"
  bool chat_template = false;
};

// Training at one shape of batch.
struct Estimate {
  std::uint32_t rows, length;
  std::uint64_t bytes, checkpointed_bytes;  // the second with gradient checkpointing
};

constexpr std::uint32_t estimate_rank = 16;

void read_tokens(const std::string& folder, ModelFacts& facts) {
  const auto tokenizer = text::Tokenizer::load(folder);
  facts.tokens = tokenizer.vocab_size();
  const auto add = [&](const char* name, std::optional<text::TokenId> id) {
    if (id) facts.special.emplace_back(name, fmt::format("{} ({})", tokenizer.id_to_token(*id).value_or("?"), *id));
  };
  add("bos", tokenizer.bos_id());
  add("eos", tokenizer.eos_id());
  add("pad", tokenizer.pad_id());
  add("unk", tokenizer.unk_id());
  for (const auto id : facts.config.eos_token_ids) add("ends an answer", id);
  facts.chat_template = text::ChatTemplate::load(folder).has_value();
}

ModelFacts read_facts(const std::string& folder) {
  ModelFacts facts{.config = read_model_config(folder)};
  const Checkpoint checkpoint = open_checkpoint(folder, facts.config);
  check_checkpoint(checkpoint, facts.config);
  facts.file_bytes = checkpoint.file_bytes();
  for (const auto& tensor : base_tensors(facts.config)) {
    facts.parameters += tensor.numel();
    const auto bnb = quantised(checkpoint, tensor);
    facts.dtypes.insert(bnb ? name_of(bnb->book) : checkpoint.at(tensor.name).tensor->dtype_name);
  }
  for (const Projection p : all_projections) {
    const auto [out, in] = projection_dims(facts.config, p);
    facts.projection_parameters += matrices_of(facts.config, p) * std::uint64_t{out} * in * facts.config.num_layers;
  }
  facts.nf4_bytes = facts.projection_parameters / 2 + facts.projection_parameters / nf4_block * 4;
  read_tokens(folder, facts);
  return facts;
}

std::vector<Estimate> estimates(const gpu::Device& device, ProductPath path, const ModelConfig& config) {
  const LoraConfig lora{.rank = estimate_rank, .target_modules = usual_targets(config)};
  std::vector<Estimate> result;
  for (const auto& [rows, wanted] : {std::pair{1u, 512u}, {4u, 512u}, {8u, 1024u}, {8u, 4096u}}) {
    const std::uint32_t length = std::min(wanted, config.max_position_embeddings);
    if (!result.empty() && result.back().rows == rows && result.back().length == length) continue;
    const auto bytes = [&](bool checkpointing) {
      const ModelOptions options{.path = path, .activations = {checkpointing ? Activations::recompute : Activations::keep}, .max_tokens = rows * length,
                                 .max_labels = rows * length};
      return plan_memory(device, config, options, lora).total();
    };
    result.push_back({rows, length, bytes(false), bytes(true)});
  }
  return result;
}

void print_text(const ModelFacts& facts) {
  const ModelConfig& c = facts.config;
  print_fact("architecture", c.model_type);
  print_fact("layers",
             fmt::format("{}, hidden {}, MLP {}", c.num_layers, grouped(c.hidden_size), grouped(c.intermediate_size)));
  if (c.has_experts()) {
    print_fact("experts", fmt::format("{} of {} a token, MLP {} each", c.experts.per_token, c.experts.count, grouped(c.experts.intermediate_size)));
  }
  print_fact("attention", fmt::format("{} heads of {}, {} for keys and values; RoPE base {}", c.num_heads, c.head_dim,
                                      c.num_kv_heads, c.rope.theta));
  print_fact("longest text", fmt::format("{} tokens", grouped(c.max_position_embeddings)));
  print_fact("vocabulary", fmt::format("{} rows, {} tokens; the head {}", grouped(c.vocab_size), grouped(facts.tokens),
                                       c.tie_word_embeddings ? "is the embedding (tied)" : "is its own matrix"));
  print_fact("parameters", fmt::format("{}, of them {} in projections", grouped(facts.parameters),
                                       grouped(facts.projection_parameters)));
  print_fact("files", fmt::format("{} in {}", human_bytes(facts.file_bytes), fmt::join(facts.dtypes, ", ")));
  print_fact("in NF4", fmt::format("{} of projections", human_bytes(facts.nf4_bytes)));
  for (const auto& [name, token] : facts.special) print_fact(name, token);
  print_fact("chat template", facts.chat_template ? "yes" : "none: rows of messages cannot be used");
}

void print_estimates(const ModelConfig& config, const std::vector<Estimate>& rows, std::string_view device) {
  fmt::print("\nMemory to train with rank {}, {} and every token trained, on\n{}\n", estimate_rank,
             config.has_experts() ? "attention's projections" : "all linear layers", device);
  fmt::print("{:>14} {:>12} {:>28}\n", "rows x tokens", "", "with gradient checkpointing");
  for (const auto& row : rows) {
    fmt::print("{:>14} {:>12} {:>28}\n", fmt::format("{} x {}", row.rows, row.length), human_bytes(row.bytes),
               human_bytes(row.checkpointed_bytes));
  }
}

Json to_json(const ModelFacts& facts, const std::vector<Estimate>& rows) {
  const ModelConfig& c = facts.config;
  Json memory = Json::array(), special = Json::array();
  for (const auto& row : rows) {
    memory.push_back({{"rows", row.rows},
                      {"length", row.length},
                      {"bytes", row.bytes},
                      {"checkpointing_bytes", row.checkpointed_bytes}});
  }
  for (const auto& [name, token] : facts.special) special.push_back({{"what", name}, {"token", token}});
  return {{"model_type", c.model_type},
          {"num_layers", c.num_layers},
          {"hidden_size", c.hidden_size},
          {"intermediate_size", c.intermediate_size},
          {"num_heads", c.num_heads},
          {"num_kv_heads", c.num_kv_heads},
          {"head_dim", c.head_dim},
          {"max_position_embeddings", c.max_position_embeddings},
          {"vocab_size", c.vocab_size},
          {"tokens", facts.tokens},
          {"tied_head", c.tie_word_embeddings},
          {"parameters", facts.parameters},
          {"projection_parameters", facts.projection_parameters},
          {"dtypes", facts.dtypes},
          {"file_bytes", facts.file_bytes},
          {"nf4_bytes", facts.nf4_bytes},
          {"special_tokens", special},
          {"chat_template", facts.chat_template},
          {"training_memory", memory}};
}

}  // namespace

void info_model(const InfoFlags& flags) {
  const ModelFacts facts = read_facts(flags.model);
  std::vector<Estimate> memory;
  std::string device_text;
  try {
    const gpu::Device device = flags.device.open();
    const ProductPath path = flags.device.path(device.info());
    memory = estimates(device, path, facts.config);
    device_text = describe(device.info(), path);
  } catch (const DeviceError& error) {
    fmt::print(stderr, "No estimate of memory: {}\n", error.what());
  }
  if (flags.json) {
    fmt::print("{}\n", write_json(to_json(facts, memory)));
  } else {
    print_text(facts);
    if (!memory.empty()) print_estimates(facts.config, memory, device_text);
  }
}

}  // namespace nibble::cli
