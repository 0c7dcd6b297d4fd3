#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "nibble/base/error.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/gguf_names.h"

namespace nibble {
namespace {

constexpr std::string_view divisors_name = "rope_freqs.weight";
constexpr JsonObject::IntegerRange any_gguf_id{0, INT32_MAX};

// What Meta published Llama 3.1 and 3.2 with; a file holds only what follows from it.
constexpr double llama3_original = 8192, llama3_low = 1, llama3_high = 4;

// The length of pre-training's texts: a divisor between 1 and the factor says it.
double original_positions(std::span<const float> divisors, double theta) {
  const double factor = *std::max_element(divisors.begin(), divisors.end());
  for (std::size_t i = 0; i < divisors.size(); ++i) {
    if (!(divisors[i] > 1.0f && divisors[i] < static_cast<float>(factor))) continue;
    const double wavelength =
        2 * std::numbers::pi * std::pow(theta, static_cast<double>(i) / static_cast<double>(divisors.size()));
    const double smooth = (1 / static_cast<double>(divisors[i]) - 1 / factor) / (1 - 1 / factor);
    return std::round(wavelength * (llama3_low + smooth * (llama3_high - llama3_low)));
  }
  return llama3_original;
}

class ConfigReader {
 public:
  explicit ConfigReader(const GgufFile& file)
      : file_(file),
        metadata_(file.metadata(), file.path().string()),
        architecture_(metadata_.string("general.architecture")) {}

  Json read() {
    config_["model_type"] = model_type();
    const auto layers = integer("block_count", {1, 1 << 12}), hidden = integer("embedding_length", {1, 1 << 20});
    const auto heads = integer("attention.head_count", {1, 1 << 12});
    config_["num_hidden_layers"] = layers;
    config_["hidden_size"] = hidden;
    config_["num_attention_heads"] = heads;
    config_["num_key_value_heads"] = integer("attention.head_count_kv", {1, 1 << 12}, heads);
    config_["intermediate_size"] = integer("feed_forward_length", {1, 1 << 20});
    config_["max_position_embeddings"] = integer("context_length", {1, 1 << 24});
    if (is_mixture()) read_experts();
    config_["vocab_size"] = tensor("token_embd.weight").shape.front();
    config_["rms_norm_eps"] = metadata_.number(key("attention.layer_norm_rms_epsilon"), {1e-12, 1.0});
    config_["head_dim"] = head_dim(hidden / heads);
    config_["tie_word_embeddings"] = !file_.tensors().contains("output.weight");
    config_["hidden_act"] = "silu";
    config_["attention_bias"] = false;
    config_["dtype"] = dtype();
    read_rope();
    read_ends();
    return config_;
  }

 private:
  std::string key(std::string_view name) const { return fmt::format("{}.{}", architecture_, name); }
  std::int64_t integer(std::string_view name, JsonObject::IntegerRange range) const {
    return metadata_.integer(key(name), range);
  }
  std::int64_t integer(std::string_view name, JsonObject::IntegerRange range, std::int64_t otherwise) const {
    return metadata_.integer(key(name), range, otherwise);
  }

  const GgufTensor& tensor(std::string_view name) const {
    const auto at = file_.tensors().find(name);
    check<DataError>(at != file_.tensors().end(), file_.path().string(),
                     "The file has no tensor {}; it holds no whole model.", name);
    return at->second;
  }

  // Mistral's models are of the architecture llama; the window tells them apart.
  std::string model_type() {
    constexpr std::array<std::string_view, 5> known{"qwen3", "qwen3moe", "qwen2", "llama", "smollm3"};
    if (std::ranges::find(known, architecture_) == known.end()) {
      metadata_.fail_key("general.architecture",
                         "\"qwen3\", \"qwen3moe\", \"qwen2\", \"llama\" or \"smollm3\", the architectures that are supported");
    }
    if (metadata_.string("general.type", "model") != "model") metadata_.fail_key("general.type", "\"model\"");
    if (!is_mixture() && integer("expert_count", {0, INT32_MAX}, 0) != 0)
      metadata_.fail_key(key("expert_count"), "absent or 0 in this architecture; of mixtures of experts \"qwen3moe\" is supported");
    const auto window = integer("attention.sliding_window", {0, 1 << 24}, 0);
    if (window == 0) return is_mixture() ? "qwen3_moe" : architecture_;
    if (architecture_ != "llama")
      metadata_.fail_key(key("attention.sliding_window"), "absent or 0 in this architecture");
    config_["sliding_window"] = window;
    return "mistral";
  }

  bool is_mixture() const { return architecture_ == "qwen3moe"; }

  // llama.cpp always divides the weights of the experts that are chosen by their sum.
  void read_experts() {
    const auto used = integer("expert_used_count", {1, 1 << 12}), whole = config_["intermediate_size"].get<std::int64_t>();
    config_["num_experts"] = integer("expert_count", {1, 1 << 12});
    config_["num_experts_per_tok"] = used;
    config_["moe_intermediate_size"] = integer("expert_feed_forward_length", {1, 1 << 20}, std::max<std::int64_t>(1, whole / used));
    config_["norm_topk_prob"] = true;
    const double scale = metadata_.number(key("expert_weights_scale"), {-1e6, 1e6}, 1.0);
    if (scale != 0 && scale != 1) metadata_.fail_key(key("expert_weights_scale"), "absent, 0 or 1");
  }

  std::int64_t head_dim(std::int64_t otherwise) const {
    const auto size = integer("attention.key_length", {1, 1 << 12}, otherwise);
    for (const auto* name : {"attention.value_length", "rope.dimension_count"}) {
      if (integer(name, {1, 1 << 12}, size) != size)
        metadata_.fail_key(key(name), fmt::format("{}, the size of a head", size));
    }
    return size;
  }

  std::string dtype() const {
    const std::string_view name = tensor(is_mixture() ? "blk.0.ffn_down_exps.weight" : "blk.0.ffn_down.weight").info().name;
    return name == "F16" ? "float16" : name == "BF16" ? "bfloat16" : "float32";
  }

  void read_rope() {
    const double theta = metadata_.number(key("rope.freq_base"), {1.0, 1e12}, 10000.0);
    Json rope = {{"rope_theta", theta}, {"rope_type", "default"}};
    const std::string kind = metadata_.string(key("rope.scaling.type"), "none");
    const JsonObject::NumberRange factors{1.0, 1e6}, positive{1e-6, 1e6};
    if (kind == "linear" || kind == "yarn") {
      rope["rope_type"] = kind;
      rope["factor"] = metadata_.number(key("rope.scaling.factor"), factors);
    } else if (kind != "none") {
      metadata_.fail_key(key("rope.scaling.type"), "\"none\", \"linear\" or \"yarn\"");
    }
    if (kind == "yarn") {
      rope["original_max_position_embeddings"] = integer("rope.scaling.original_context_length", {1, 1 << 24});
      rope["beta_fast"] = metadata_.number(key("rope.scaling.yarn_beta_fast"), positive, 32.0);
      rope["beta_slow"] = metadata_.number(key("rope.scaling.yarn_beta_slow"), positive, 1.0);
    }
    for (const auto* name :
         {"rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"}) {
      if (metadata_.number(key(name), {-1e6, 1e6}, 1.0) != 1.0) metadata_.fail_key(key(name), "absent or 1");
    }
    if (file_.tensors().contains(divisors_name)) read_divisors(rope, kind);
    config_["rope_parameters"] = rope;
  }

  // The largest divisor is Llama 3's factor, another one says the length; that all of them follow from these is
  // checked.
  void read_divisors(Json& rope, const std::string& kind) {
    const GgufTensor& stored = tensor(divisors_name);
    const auto size = static_cast<std::uint32_t>(config_["head_dim"].get<std::int64_t>());
    check<DataError>(kind == "none" && stored.info().name == "F32" && stored.shape == Shape{size / 2},
                     file_.path().string(),
                     "The tensor {} is {} {} with RoPE scaling \"{}\"; F32 [{}] without other scaling is read.",
                     divisors_name, stored.info().name, to_string(stored.shape), kind, size / 2);
    std::vector<float> values(size / 2);
    file_.read(stored, 0, std::as_writable_bytes(std::span(values)));
    RopeConfig llama3{.kind = RopeConfig::Kind::llama3,
                      .theta = rope["rope_theta"].get<float>(),
                      .factor = *std::max_element(values.begin(), values.end()),
                      .original_positions = original_positions(values, rope["rope_theta"].get<double>()),
                      .low_freq_factor = llama3_low,
                      .high_freq_factor = llama3_high};
    const auto expected = llama3_divisors(llama3, size);
    const bool same = std::equal(values.begin(), values.end(), expected.begin(),
                                 [](float a, float b) { return std::abs(a - b) <= 1e-4f * b; });
    check<DataError>(same && llama3.factor >= 1 && llama3.original_positions >= 1, file_.path().string(),
                     "The tensor {} holds other divisors than Llama 3's for a factor of {} and texts of {}; no other "
                     "stretching is supported.",
                     divisors_name, llama3.factor, llama3.original_positions);
    if (llama3.factor == 1) return;
    rope["rope_type"] = "llama3";
    rope["factor"] = llama3.factor;
    rope["original_max_position_embeddings"] = static_cast<std::int64_t>(llama3.original_positions);
    rope["low_freq_factor"] = llama3_low;
    rope["high_freq_factor"] = llama3_high;
  }

  void read_ends() {
    Json ids = Json::array();
    for (const auto* name : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
      if (!metadata_.has(name)) continue;
      const auto id = metadata_.integer(name, any_gguf_id);
      if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
    }
    config_["eos_token_id"] = ids;
  }

  const GgufFile& file_;
  JsonObject metadata_;
  std::string architecture_;
  Json config_ = Json::object();
};

}  // namespace

Json config_of_gguf(const GgufFile& file) {
  Json config = ConfigReader(file).read();
  config["architectures"] = Json::array({family_named(config["model_type"].get<std::string>())->architecture});
  return config;
}

std::vector<float> llama3_divisors(const RopeConfig& rope, std::uint32_t head_dim) {
  std::vector<float> divisors;
  const double longest = rope.original_positions / rope.low_freq_factor,
               shortest = rope.original_positions / rope.high_freq_factor;
  for (std::uint32_t i = 0; i < head_dim / 2; ++i) {
    const double wavelength = 2 * std::numbers::pi * std::pow(double{rope.theta}, 2.0 * i / head_dim);
    const double smooth =
        (rope.original_positions / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    const double between = 1 / ((1 - smooth) / rope.factor + smooth);
    divisors.push_back(static_cast<float>(wavelength < shortest ? 1.0 : wavelength > longest ? rope.factor : between));
  }
  return divisors;
}

}  // namespace nibble
