#include "nibble/weights/gguf_model.h"

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/quant/ggml.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/gguf_names.h"
#include "nibble/weights/made_up_checkpoint.h"
#include "nibble/weights/merge.h"
#include "tests/support/files.h"

#include <fstream>

namespace nibble::gguf_model_test {
namespace {

using test::expect_error;

// Llama's layers are SmolLM3's, where all rotate.
void write_as_smollm3(const fs::path& path) {
  Json config = read_json_file(path);
  config["model_type"] = "smollm3";
  config["rope_parameters"] = {{"rope_theta", 5e6}, {"rope_type", "default"}};
  std::ofstream(path) << config;
}

// Of random weights; its experts have rows of whole blocks.
void write_mixture(const fs::path& folder) {
  const ModelConfig tiny = read_model_config(test::source_path("models/tiny-qwen3"));
  ModelConfig config{.model_type = "qwen3_moe", .family = *family_named("qwen3_moe"), .hidden_size = 64, .num_layers = 2, .vocab_size = tiny.vocab_size,
                     .num_heads = 4, .num_kv_heads = 2, .head_dim = 16, .intermediate_size = 128, .max_position_embeddings = 512,
                     .rms_norm_eps = 1e-6f};
  config.experts = {.count = 5, .per_token = 2, .intermediate_size = 32, .normalised = true};
  fs::create_directory(folder);
  write_made_up_checkpoint(folder, config);
  Json json = read_json_file(folder / "config.json");
  json["eos_token_id"] = tiny.eos_token_ids;
  std::ofstream(folder / "config.json") << json;
}

// A model folder with weights of a golden model and the tiny model's tokenizer, which has as many tokens.
fs::path model_folder(const test::TemporaryFolder& folder, const std::string& name) {
  const fs::path tiny = test::source_path("models/tiny-qwen3");
  if (name == "qwen3") return tiny;
  const fs::path to = folder / name;
  const bool smollm3 = name == "smollm3";  // the golden one's vocabulary is smaller than the tiny model's
  if (name == "qwen3_moe") {
    write_mixture(to);
  } else {
    fs::copy(test::source_path("tests/golden/" + (smollm3 ? "llama" : name) + "/model"), to);
  }
  if (smollm3) write_as_smollm3(to / "config.json");
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"})
    fs::copy_file(tiny / file, to / file);
  return to;
}

fs::path as_gguf(const test::TemporaryFolder& folder, const fs::path& model, GgufModelType type) {
  fs::path output = folder / "out.gguf";
  merge({.model = model, .output = output, .gguf = type, .overwrite = true});
  return output;
}

void expect_equal_configs(const ModelConfig& a, const ModelConfig& b) {
  EXPECT_EQ(a.model_type, b.model_type);
  EXPECT_EQ(a.hidden_size, b.hidden_size);
  EXPECT_EQ(a.num_layers, b.num_layers);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.num_heads, b.num_heads);
  EXPECT_EQ(a.num_kv_heads, b.num_kv_heads);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.intermediate_size, b.intermediate_size);
  EXPECT_EQ(a.max_position_embeddings, b.max_position_embeddings);
  EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
  EXPECT_EQ(a.rope.kind, b.rope.kind);
  EXPECT_EQ(a.rope.theta, b.rope.theta);
  EXPECT_EQ(a.rope.factor, b.rope.factor);
  EXPECT_EQ(a.rope.original_positions, b.rope.original_positions);
  EXPECT_EQ(a.sliding_window, b.sliding_window);
  EXPECT_EQ(a.nope, b.nope);
  EXPECT_EQ(a.tie_word_embeddings, b.tie_word_embeddings);
  EXPECT_EQ(a.eos_token_ids, b.eos_token_ids);
  EXPECT_EQ(a.experts.count, b.experts.count);
  EXPECT_EQ(a.experts.per_token, b.experts.per_token);
  EXPECT_EQ(a.experts.intermediate_size, b.experts.intermediate_size);
  EXPECT_EQ(a.experts.normalised, b.experts.normalised);
}

class GgufModelTest : public testing::TestWithParam<std::string> {
 protected:
  test::TemporaryFolder folder_;
};

TEST_P(GgufModelTest, HasTheConfigAndTheBitsOfTheFolder) {
  const fs::path model = model_folder(folder_, GetParam());
  const ModelConfig config = read_model_config(model);
  const Checkpoint original(model);
  for (const GgufModelType type : {GgufModelType::f32, GgufModelType::stored}) {
    const fs::path file = as_gguf(folder_, model, type);
    const ModelConfig read = read_model_config(file);
    expect_equal_configs(read, config);
    const Checkpoint checkpoint = open_checkpoint(file, read);
    check_checkpoint(checkpoint, read);
    for (const BaseTensor& tensor : base_tensors(config)) {
      EXPECT_EQ(checkpoint.at(tensor.name).tensor->shape, tensor.shape);
      EXPECT_EQ(checkpoint.read_as_f32(tensor.name), original.read_as_f32(tensor.name)) << tensor.name;
    }
    EXPECT_EQ(checkpoint.at(projection_tensor_name(0, Projection::q)).tensor->dtype_name,
              type == GgufModelType::f32 ? "F32" : "BF16");
    EXPECT_EQ(checkpoint.at(final_norm_tensor_name).tensor->dtype_name, "F32");
  }
}

TEST_P(GgufModelTest, BlocksAreThoseOfTheRows) {
  const fs::path model = model_folder(folder_, GetParam());
  const ModelConfig config = read_model_config(model);
  const Checkpoint original(model);
  const auto through = [](GgmlType type, const std::vector<float>& values) {
    std::vector<std::byte> blocks(values.size() / info_of(type).values * info_of(type).bytes);
    ggml_quantize(type, values, blocks);
    std::vector<float> result(values.size());
    ggml_dequantize(type, blocks, result);
    return result;
  };
  const Checkpoint checkpoint = open_checkpoint(as_gguf(folder_, model, GgufModelType::q4_0), config);
  for (const Projection p : all_projections) {
    const std::string name = module_names(config.experts.count, 1, p).back() + ".weight";
    EXPECT_EQ(checkpoint.at(name).tensor->dtype_name, "Q4_0");
    EXPECT_EQ(checkpoint.read_as_f32(name), through(GgmlType::q4_0, original.read_as_f32(name))) << name;
  }
  EXPECT_EQ(checkpoint.read_as_f32(embedding_tensor_name),
            through(GgmlType::q8_0, original.read_as_f32(embedding_tensor_name)));
}

TEST_P(GgufModelTest, PartsAreReadWhereverTheyBegin) {
  const fs::path model = model_folder(folder_, GetParam());
  const ModelConfig config = read_model_config(model);
  const Checkpoint checkpoint = open_checkpoint(as_gguf(folder_, model, GgufModelType::q8_0), config);
  Rng rng(3);
  for (const Projection p : {Projection::q, Projection::down}) {
    const std::string name = module_names(config.experts.count, 0, p).back() + ".weight";
    const auto whole = checkpoint.read_as_f32(name);
    for (int i = 0; i < 50; ++i) {
      const std::size_t first = rng.below(static_cast<std::uint32_t>(whole.size()));
      std::vector<float> part(std::min<std::size_t>(1 + rng.below(40'000), whole.size() - first));
      checkpoint.read(name, first * 4, std::as_writable_bytes(std::span(part)));
      ASSERT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + static_cast<std::ptrdiff_t>(first)))
          << name << " " << first;
    }
  }
}

TEST_P(GgufModelTest, SaysWhereLlamaCppLeavesOutTheWindow) {
  const MergeResult result = merge(
      {.model = model_folder(folder_, GetParam()), .output = folder_ / "out.gguf", .gguf = GgufModelType::stored});
  EXPECT_EQ(result.notes.size(), GetParam() == "mistral" ? 1 : 0);
}

TEST_P(GgufModelTest, BecomesTheSameFolderAgain) {
  const fs::path model = model_folder(folder_, GetParam()), again = folder_ / "again";
  merge({.model = as_gguf(folder_, model, GgufModelType::stored), .output = again});
  const ModelConfig config = read_model_config(again);
  expect_equal_configs(config, read_model_config(model));
  const Checkpoint original(model), read(again);
  for (const BaseTensor& tensor : base_tensors(config))
    EXPECT_EQ(read.read_as_f32(tensor.name), original.read_as_f32(tensor.name)) << tensor.name;
  EXPECT_EQ(read_json_file(again / "tokenizer.json")["model"]["vocab"],
            read_json_file(model / "tokenizer.json")["model"]["vocab"]);
  EXPECT_EQ(read_json_file(again / "tokenizer_config.json")["chat_template"],
            test::slurp(model / "chat_template.jinja"));
}

INSTANTIATE_TEST_SUITE_P(Families, GgufModelTest, testing::Values("qwen3", "qwen2", "llama", "mistral", "smollm3", "qwen3_moe"),
                         [](const auto& each) { return each.param; });

// The metadata of a model of one layer, and its tensors in zeros.
struct SmallModel {
  GgufMetadata metadata{{"general.architecture", std::string("llama")},
                        {"llama.block_count", 1u},
                        {"llama.embedding_length", 64u},
                        {"llama.attention.head_count", 2u},
                        {"llama.feed_forward_length", 64u},
                        {"llama.context_length", 128u},
                        {"llama.attention.layer_norm_rms_epsilon", 1e-5f}};
  std::vector<GgufSpec> tensors{
      {"token_embd.weight", GgmlType::f32, {4, 64}},      {"output_norm.weight", GgmlType::f32, {64}},
      {"blk.0.attn_norm.weight", GgmlType::f32, {64}},    {"blk.0.ffn_norm.weight", GgmlType::f32, {64}},
      {"blk.0.attn_q.weight", GgmlType::f32, {64, 64}},   {"blk.0.attn_k.weight", GgmlType::f32, {64, 64}},
      {"blk.0.attn_v.weight", GgmlType::f32, {64, 64}},   {"blk.0.attn_output.weight", GgmlType::f32, {64, 64}},
      {"blk.0.ffn_gate.weight", GgmlType::f32, {64, 64}}, {"blk.0.ffn_up.weight", GgmlType::f32, {64, 64}},
      {"blk.0.ffn_down.weight", GgmlType::f32, {64, 64}}};

  void set(std::string_view key, GgufValue value) {
    std::erase_if(metadata, [&](const auto& entry) { return entry.first == key; });
    metadata.emplace_back(key, std::move(value));
  }
  // `rope_freqs` is what that tensor holds.
  void write(const test::TemporaryFolder& folder, float rope_freqs = 0) const {
    GgufWriter writer(folder / "small.gguf", metadata, tensors);
    for (const GgufSpec& tensor : tensors) {
      std::vector<float> values(tensor.bytes() / 4, tensor.name == "rope_freqs.weight" ? rope_freqs : 0.0f);
      writer.append(std::as_bytes(std::span(values)));
    }
    writer.finish();
  }
  // Reads it as every verb does.
  void open(const test::TemporaryFolder& folder, float rope_freqs = 0) const {
    write(folder, rope_freqs);
    const ModelConfig config = read_model_config(folder / "small.gguf");
    check_checkpoint(open_checkpoint(folder / "small.gguf", config), config);
  }
};

// llama.cpp has no key for it.
TEST(GgufModelOfSmolLM3, DoesNotRotateEveryFourthLayer) {
  const test::TemporaryFolder folder;
  SmallModel small;
  small.set("general.architecture", std::string("smollm3"));
  for (auto& [key, value] : small.metadata) {
    if (key.starts_with("llama.")) key.replace(0, 5, "smollm3");
  }
  small.set("smollm3.block_count", 8u);
  small.write(folder);
  EXPECT_EQ(read_model_config(folder / "small.gguf").nope, (std::vector<bool>{false, false, false, true, false, false, false, true}));

  const fs::path model = model_folder(folder, "smollm3");
  Json config = read_json_file(model / "config.json");
  const auto refuse = [&](const char* key, const Json& value, auto... parts) {
    Json changed = config;
    changed[key] = value;
    std::ofstream(model / "config.json") << changed;
    expect_error<DataError>([&] { as_gguf(folder, model, GgufModelType::stored); }, parts...);
    EXPECT_FALSE(fs::exists(folder / "out.gguf"));
  };
  refuse("no_rope_layers", {1, 0, 1}, "Layer 1 does not rotate", "all layers of smollm3 but every fourth");
  refuse("rope_parameters", read_json_file(test::source_path("tests/golden/llama/model/config.json"))["rope_parameters"], "\"llama3\"", "smollm3");
}

TEST(GgufNames, ThoseOfLlamaCpp) {
  EXPECT_EQ(gguf_tensor_name("model.layers.12.self_attn.o_proj.weight"), "blk.12.attn_output.weight");
  EXPECT_EQ(gguf_tensor_name("model.layers.0.self_attn.k_proj.bias"), "blk.0.attn_k.bias");
  EXPECT_EQ(gguf_tensor_name("model.layers.0.post_attention_layernorm.weight"), "blk.0.ffn_norm.weight");
  EXPECT_EQ(gguf_tensor_name("lm_head.weight"), "output.weight");
  EXPECT_EQ(gguf_tensor_name("model.layers.0.mlp.gate.weight"), "blk.0.ffn_gate_inp.weight");
  EXPECT_EQ(gguf_tensor_name("model.layers.3.mlp.experts.17.down_proj.weight"), "blk.3.ffn_down_exps.weight");
  EXPECT_EQ(gguf_tensor_name("model.layers.3.mlp.experts.17.o_proj.weight"), std::nullopt);
  EXPECT_EQ(expert_in("model.layers.3.mlp.experts.17.down_proj.weight"), 17u);
  for (const char* none : {"model.layers.3.mlp.experts.down_proj", "model.layers.3.mlp.experts.17", "model.layers.3.mlp.down_proj.weight"}) {
    EXPECT_EQ(expert_in(none), std::nullopt) << none;
  }
  EXPECT_EQ(gguf_tensor_name("visual.weight"), std::nullopt);
  // Of a head of eight rows the first half goes to even places.
  std::vector<std::uint64_t> places;
  for (std::uint64_t row = 8; row < 16; ++row) places.push_back(interleaved_row(row, 8));
  EXPECT_EQ(places, (std::vector<std::uint64_t>{8, 10, 12, 14, 9, 11, 13, 15}));
}

TEST(GgufModelErrors, NameFileKeyAndTensor) {
  const test::TemporaryFolder folder;
  SmallModel().open(folder);
  const auto refuse_key = [&](std::string_view key, GgufValue value, auto... parts) {
    SmallModel model;
    model.set(key, std::move(value));
    expect_error<DataError>([&] { model.open(folder); }, "small.gguf", std::string(key), parts...);
  };
  refuse_key("general.architecture", std::string("gemma"), "\"qwen3\", \"qwen3moe\", \"qwen2\", \"llama\" or \"smollm3\"", "gemma");
  refuse_key("general.type", std::string("adapter"), "\"model\"");
  refuse_key("llama.block_count", 1u << 20, "from 1 to 4096");
  refuse_key("llama.expert_count", 8u, "mixtures of experts");
  refuse_key("llama.attention.value_length", 16u, "32, the size of a head");
  refuse_key("llama.rope.scaling.type", std::string("longrope"), "\"yarn\"");
  SmallModel part;
  part.set("split.count", 3u);
  expect_error<DataError>([&] { part.open(folder); }, "small.gguf", "split.no");
  part.set("split.no", 0u);
  expect_error<DataError>([&] { part.open(folder); }, "small.gguf", "its name must end in \"-00001-of-00003.gguf\"");
  SmallModel no_layers;
  std::erase_if(no_layers.metadata, [](const auto& entry) { return entry.first == "llama.block_count"; });
  expect_error<DataError>([&] { no_layers.open(folder); }, "llama.block_count", "absent");
}

TEST(GgufModelErrors, NameTensorsThatDoNotFit) {
  const test::TemporaryFolder folder;
  const auto refuse = [&](auto change, auto... parts) {
    SmallModel model;
    change(model.tensors);
    expect_error<DataError>([&] { model.open(folder, 3.0f); }, "small.gguf", parts...);
  };
  refuse([](auto& tensors) { tensors.erase(tensors.begin()); }, "no tensor token_embd.weight");
  refuse([](auto& tensors) { tensors.pop_back(); }, "no tensor blk.0.ffn_down.weight");
  refuse([](auto& tensors) { tensors.erase(tensors.begin() + 6); }, "model.layers.0.self_attn.v_proj.weight",
         "is missing");
  refuse([](auto& tensors) { tensors[6].shape = {32, 64}; }, "[32, 64]");
  refuse([](auto& tensors) { tensors[4].shape = {33, 64}; }, "blk.0.attn_q.weight", "whole heads of 32 rows");
  refuse(
      [](auto& tensors) {
        tensors.push_back({"blk.0.attn_q.bias", GgmlType::f32, {64}});
      },
      "blk.0.attn_q.bias is no part");
  refuse(
      [](auto& tensors) {
        tensors.push_back({"blk.1.ffn_up.weight", GgmlType::f32, {64, 64}});
      },
      "blk.1.ffn_up.weight is no part");
  refuse(
      [](auto& tensors) {
        tensors.push_back({"rope_freqs.weight", GgmlType::f32, {8}});
      },
      "rope_freqs.weight is F32 [8]");
  refuse(
      [](auto& tensors) {
        tensors.push_back({"rope_freqs.weight", GgmlType::f32, {16}});
      },
      "other divisors than Llama 3's");
}

TEST(GgufModelErrors, NameTypesThatAreNotDecoded) {
  const test::TemporaryFolder folder;
  SmallModel().open(folder);
  std::string bytes = test::slurp(folder / "small.gguf");
  const std::string name = "blk.0.attn_v.weight";
  bytes[bytes.find(name) + name.size() + 4 + 16] = 26;  // I32, which has as many bytes
  folder.write("small.gguf", bytes);
  const ModelConfig config = read_model_config(folder / "small.gguf");
  expect_error<DataError>([&] { open_checkpoint(folder / "small.gguf", config); },
                          "blk.0.attn_v.weight is I32, which is not decoded", "IQ4_XS");
}

}  // namespace
}  // namespace nibble::gguf_model_test
