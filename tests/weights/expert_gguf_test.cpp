#include "nibble/base/error.h"
#include "nibble/io/gguf.h"
#include "nibble/weights/adapter_export.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/merge.h"
#include "tests/support/files.h"

#include <fstream>

namespace nibble::expert_gguf_test {
namespace {

using test::expect_error;

const fs::path golden = test::source_path("tests/golden/qwen3-moe");

std::vector<float> values_of(const GgufFile& file, const std::string& name) {
  const GgufTensor& tensor = file.tensors().at(name);
  EXPECT_EQ(tensor.info().name, "F32");
  std::vector<float> values(tensor.bytes / 4);
  file.read(tensor, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

// The golden mixture of experts with a tokenizer of three tokens.
class GgufOfExperts : public testing::Test {
 protected:
  GgufOfExperts() {
    fs::copy(golden / "model", model_);
    Json tokenizer = read_json_file(test::source_path("models/tiny-qwen3/tokenizer.json"));
    tokenizer["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"ab", 2}};
    tokenizer["model"]["merges"] = {"a b"};
    tokenizer["added_tokens"] = Json::array();
    std::ofstream(model_ / "tokenizer.json") << tokenizer;
  }

  fs::path as_gguf(GgufModelType type) {
    fs::path file = folder_ / "m.gguf";
    merge({.model = model_, .output = file, .gguf = type, .overwrite = true});
    return file;
  }

  const test::TemporaryFolder folder_;
  const fs::path model_ = folder_ / "model";
};

TEST_F(GgufOfExperts, HasThemStackedAsLlamaCppReadsThem) {
  const GgufFile file(as_gguf(GgufModelType::f32));
  const Checkpoint base(model_);
  const JsonObject metadata(file.metadata(), "metadata");
  EXPECT_EQ(metadata.string("general.architecture"), "qwen3moe");
  constexpr JsonObject::IntegerRange any{0, INT32_MAX};
  EXPECT_EQ(metadata.integer("qwen3moe.expert_count", any), 4);
  EXPECT_EQ(metadata.integer("qwen3moe.expert_used_count", any), 2);
  EXPECT_EQ(metadata.integer("qwen3moe.expert_feed_forward_length", any), 8);
  EXPECT_EQ(metadata.integer("qwen3moe.feed_forward_length", any), 64);
  EXPECT_EQ(file.tensors().at("blk.1.ffn_up_exps.weight").shape, (Shape{4, 8, 64}));
  EXPECT_EQ(file.tensors().at("blk.1.ffn_down_exps.weight").shape, (Shape{4, 64, 8}));
  for (const auto& [name, module] : {std::pair{"gate", "gate_proj"}, {"up", "up_proj"}, {"down", "down_proj"}}) {
    const auto all = values_of(file, fmt::format("blk.1.ffn_{}_exps.weight", name));
    ASSERT_EQ(all.size(), 4u * 512);
    for (std::size_t expert = 0; expert < 4; ++expert) {
      const auto one = base.read_as_f32(fmt::format("model.layers.1.mlp.experts.{}.{}.weight", expert, module));
      EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + static_cast<std::ptrdiff_t>(512 * expert))) << name << expert;
    }
  }
  EXPECT_EQ(file.tensors().size(), 2u + 2 * (2 + 4 + 2 + 3 + 1));
}

// Rows of eight values are no whole blocks, and routers stay in f32.
TEST_F(GgufOfExperts, HasRoutersInF32AndNarrowRowsInF16) {
  const GgufFile file(as_gguf(GgufModelType::q8_0));
  EXPECT_EQ(file.tensors().at("blk.0.ffn_gate_inp.weight").info().name, "F32");
  EXPECT_EQ(file.tensors().at("blk.0.ffn_gate_exps.weight").info().name, "Q8_0");
  EXPECT_EQ(file.tensors().at("blk.0.ffn_down_exps.weight").info().name, "F16");
}

TEST_F(GgufOfExperts, GivesBackTheBitsOfTheFolder) {
  const Checkpoint original(model_);
  const fs::path file = as_gguf(GgufModelType::stored);
  const ModelConfig config = read_model_config(file);
  const Checkpoint read = open_checkpoint(file, config);
  check_checkpoint(read, config);
  ASSERT_EQ(read.tensors().size(), original.tensors().size());
  for (const BaseTensor& tensor : base_tensors(config)) EXPECT_EQ(read.read_as_f32(tensor.name), original.read_as_f32(tensor.name)) << tensor.name;
}

TEST_F(GgufOfExperts, AdapterIsWhatTheMergedFileHasMore) {
  const AdapterExport options{.model = model_, .adapter = golden / "adapter_nonzero", .output = folder_ / "a.gguf", .start = {}, .consumer = Consumer::llama_cpp};
  save_gguf_adapter(options.output, check_export(options), GgmlType::f32);
  merge({.model = model_, .output = folder_ / "merged.gguf", .adapters = {{golden / "adapter_nonzero"}}, .gguf = GgufModelType::f32});
  const GgufFile adapter(options.output), base(as_gguf(GgufModelType::f32)), merged(folder_ / "merged.gguf");
  const double scaling = JsonObject(adapter.metadata(), "adapter").number("adapter.lora.alpha", {0, 1e9}) / 2;
  EXPECT_EQ(adapter.tensors().size(), 2u * 2 * 7);
  for (const char* name : {"blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight", "blk.0.attn_q.weight"}) {
    const auto w = values_of(base, name), m = values_of(merged, name);
    const auto a = values_of(adapter, fmt::format("{}.lora_a", name)), b = values_of(adapter, fmt::format("{}.lora_b", name));
    const Shape &shape = base.tensors().at(name).shape, &a_shape = adapter.tensors().at(fmt::format("{}.lora_a", name)).shape;
    ASSERT_EQ(a_shape.size(), shape.size());
    const auto in = static_cast<std::size_t>(shape.back()), out = static_cast<std::size_t>(shape[shape.size() - 2]);
    double worst = 0, largest = 0;
    for (std::size_t i = 0; i < w.size(); ++i) {
      const std::size_t expert = i / (in * out), row = i / in % out, column = i % in;
      double sum = 0;
      for (std::size_t k = 0; k < 2; ++k) sum += double{b[(expert * out + row) * 2 + k]} * a[(expert * 2 + k) * in + column];
      worst = std::max(worst, std::abs(w[i] + scaling * sum - m[i]));
      largest = std::max(largest, std::abs(scaling * sum));
    }
    EXPECT_GT(largest, 1e-3) << name;
    EXPECT_LT(worst, 1e-6) << name;  // f32 sums of few values below 1
  }
}

// llama.cpp has no key for a router whose weights are not divided by their sum.
TEST_F(GgufOfExperts, RefusesWhatLlamaCppComputesOtherwise) {
  Json config = read_json_file(model_ / "config.json");
  config["norm_topk_prob"] = false;
  std::ofstream(model_ / "config.json") << config;
  expect_error<DataError>([&] { as_gguf(GgufModelType::f16); }, "\"norm_topk_prob\" is false", "llama.cpp always divides");
  EXPECT_FALSE(fs::exists(folder_ / "m.gguf"));
  AdapterExport options{.model = model_, .adapter = golden / "adapter_nonzero", .output = folder_ / "a.gguf", .start = {}, .consumer = Consumer::llama_cpp};
  expect_error<DataError>([&] { check_export(options); }, "norm_topk_prob");
}

// The metadata of a mixture of three experts of one layer, and its tensors in zeros.
struct SmallMixture {
  GgufMetadata metadata{{"general.architecture", std::string("qwen3moe")},
                        {"qwen3moe.block_count", 1u},
                        {"qwen3moe.embedding_length", 64u},
                        {"qwen3moe.attention.head_count", 4u},
                        {"qwen3moe.feed_forward_length", 48u},
                        {"qwen3moe.context_length", 128u},
                        {"qwen3moe.attention.layer_norm_rms_epsilon", 1e-5f},
                        {"qwen3moe.expert_count", 3u},
                        {"qwen3moe.expert_used_count", 2u}};
  std::map<std::string, Shape> tensors{
      {"token_embd.weight", {4, 64}},          {"output_norm.weight", {64}},          {"blk.0.attn_norm.weight", {64}},
      {"blk.0.ffn_norm.weight", {64}},         {"blk.0.attn_q_norm.weight", {16}},    {"blk.0.attn_k_norm.weight", {16}},
      {"blk.0.attn_q.weight", {64, 64}},       {"blk.0.attn_k.weight", {64, 64}},     {"blk.0.attn_v.weight", {64, 64}},
      {"blk.0.attn_output.weight", {64, 64}},  {"blk.0.ffn_gate_inp.weight", {3, 64}}, {"blk.0.ffn_gate_exps.weight", {3, 24, 64}},
      {"blk.0.ffn_up_exps.weight", {3, 24, 64}}, {"blk.0.ffn_down_exps.weight", {3, 64, 24}}};

  ModelConfig open(const test::TemporaryFolder& folder) const {
    std::vector<GgufSpec> specs;
    for (const auto& [name, shape] : tensors) specs.push_back({name, GgmlType::f32, shape});
    GgufWriter writer(folder / "small.gguf", metadata, specs);
    for (const GgufSpec& spec : specs) writer.append(std::vector<std::byte>(spec.bytes()));
    writer.finish();
    const ModelConfig config = read_model_config(folder / "small.gguf");
    check_checkpoint(open_checkpoint(folder / "small.gguf", config), config);
    return config;
  }
};

TEST(GgufMixture, SharesTheMlpsWidthWhereNoneIsGiven) {
  const test::TemporaryFolder folder;
  const ModelConfig config = SmallMixture().open(folder);
  EXPECT_EQ(config.model_type, "qwen3_moe");
  EXPECT_EQ(config.experts.count, 3u);
  EXPECT_EQ(config.experts.per_token, 2u);
  EXPECT_EQ(config.experts.intermediate_size, 24u);
  EXPECT_TRUE(config.experts.normalised);
}

TEST(GgufMixture, RefusesByKeyAndTensor) {
  const test::TemporaryFolder folder;
  const auto refuse = [&](auto change, auto... parts) {
    SmallMixture mixture;
    change(mixture);
    expect_error<DataError>([&] { mixture.open(folder); }, "small.gguf", parts...);
  };
  const auto set = [](std::string key, GgufValue value) {
    return [=](SmallMixture& mixture) {
      std::erase_if(mixture.metadata, [&](const auto& entry) { return entry.first == key; });
      mixture.metadata.emplace_back(key, value);
    };
  };
  const auto reshape = [](std::string name, Shape shape) { return [=](SmallMixture& mixture) { mixture.tensors[name] = shape; }; };
  const auto erase = [](std::string name) { return [=](SmallMixture& mixture) { mixture.tensors.erase(name); }; };
  refuse(set("qwen3moe.expert_count", 0u), "qwen3moe.expert_count", "found 0");
  refuse(set("qwen3moe.expert_used_count", 4u), "num_experts_per_tok", "from 1 to 3");
  refuse(set("qwen3moe.expert_weights_scale", 2.5f), "qwen3moe.expert_weights_scale", "absent, 0 or 1");
  refuse(set("qwen3moe.expert_count", 4u), "blk.0.ffn_gate_exps.weight", "[3, 24, 64]", "[4, 24, 64]");
  refuse(set("qwen3moe.expert_feed_forward_length", 16u), "[3, 24, 64]", "[3, 16, 64]");
  refuse(reshape("blk.0.ffn_up_exps.weight", {72, 64}), "blk.0.ffn_up_exps.weight", "[72, 64]", "[3, 24, 64]");
  refuse(reshape("blk.0.ffn_gate_inp.weight", {64, 3}), "mlp.gate.weight", "[64, 3]");
  refuse(erase("blk.0.ffn_up_exps.weight"), "mlp.experts.0.up_proj.weight", "is missing");
  refuse(erase("blk.0.ffn_down_exps.weight"), "no tensor blk.0.ffn_down_exps.weight");
  refuse(reshape("blk.0.ffn_gate_up_exps.weight", {3, 48, 64}), "blk.0.ffn_gate_up_exps.weight is no part");
}

}  // namespace
}  // namespace nibble::expert_gguf_test
