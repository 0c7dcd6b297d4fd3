#include "nibble/weights/adapter_export.h"

#include <cmath>

#include "nibble/base/error.h"
#include "nibble/io/gguf.h"
#include "nibble/io/json.h"
#include "nibble/weights/gguf_names.h"
#include "nibble/weights/merge.h"
#include "nibble/weights/mlx_adapter.h"
#include "tests/support/files.h"

namespace nibble::adapter_export_test {
namespace {

using test::expect_error;

// A model and an adapter of a golden folder, and the tiny model's tokenizer.
class AdapterExportTest : public testing::Test {
 protected:
  AdapterExport options(const std::string& name, Consumer consumer) {
    const bool tiny = name == "tiny";
    AdapterExport result{.model = test::source_path(tiny ? "models/tiny-qwen3" : "tests/golden/" + name + "/model"),
                         .adapter = test::source_path("tests/golden/" + name + "/adapter_nonzero"),
                         .output = folder_ / "out",
                         .consumer = consumer};
    return result;
  }
  // The adapter of the tiny model with keys of its config changed; where `head` is set with a head of zeros.
  AdapterExport changed(Consumer consumer, const Json& changes, bool head = false) {
    AdapterExport result = options("tiny", consumer);
    LoraAdapter adapter = load_lora_adapter(result.adapter, read_model_config(result.model));
    result.adapter = folder_ / "changed";
    if (head) {
      adapter.config.saves_head = true;
      adapter.head = MatrixSource{
          .rows = 4096, .columns = 256, .read = [](const PieceSink& sink) { sink(std::vector<float>(4096 * 256), 0); }};
    }
    save_lora_adapter(result.adapter, adapter);
    Json config = read_json_file(result.adapter / "adapter_config.json");
    config.update(changes);
    std::ofstream(result.adapter / "adapter_config.json") << config;
    return result;
  }

  test::TemporaryFolder folder_;
};

std::vector<float> values_of(const GgufFile& file, const std::string& name) {
  const GgufTensor& tensor = file.tensors().at(name);
  std::vector<float> values(tensor.bytes / 4);
  file.read(tensor, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

TEST_F(AdapterExportTest, GgufHasWhatLlamaCppNeeds) {
  const AdapterExport o = options("tiny", Consumer::llama_cpp);
  const ExportedAdapter exported = check_export(o);
  save_gguf_adapter(o.output, exported, GgmlType::f32);
  const GgufFile file(o.output);
  const JsonObject metadata(file.metadata(), "adapter");
  EXPECT_EQ(metadata.string("general.type"), "adapter");
  EXPECT_EQ(metadata.string("general.architecture"), "qwen3");
  EXPECT_EQ(metadata.string("adapter.type"), "lora");
  EXPECT_EQ(metadata.number("adapter.lora.alpha", {0, 1e9}), exported.adapter.config.lora_alpha);
  EXPECT_EQ(file.tensors().size(), 4 * 7 * 2);
  const LoraMatrices& lora = exported.adapter.at(2, Projection::k);
  EXPECT_EQ(values_of(file, "blk.2.attn_k.weight.lora_a"), lora.a);
  EXPECT_EQ(values_of(file, "blk.2.attn_k.weight.lora_b"), lora.b);
  EXPECT_EQ(file.tensors().at("blk.0.ffn_down.weight.lora_b").shape, (Shape{256, exported.adapter.config.rank}));
}

// What llama.cpp computes, W + alpha / rank * B A with both files' rows as they are, is the merged model's file.
TEST_F(AdapterExportTest, GgufAdapterFitsTheRowsOfTheGgufModel) {
  for (const std::string name : {"tiny", "llama", "mistral", "qwen2", "smollm3"}) {
    const bool smollm3 = name == "smollm3";  // llama's layers are its own, where all rotate
    AdapterExport o = options(smollm3 ? "llama" : name, Consumer::llama_cpp);
    o.overwrite = true;
    const fs::path model = folder_ / (name + "-model");
    fs::copy(o.model, model);
    if (smollm3) {
      Json config = read_json_file(model / "config.json");
      config["model_type"] = "smollm3";
      config["rope_parameters"] = {{"rope_theta", 5e6}, {"rope_type", "default"}};
      std::ofstream(model / "config.json") << config;
      o.model = model;
    }
    const ExportedAdapter exported = check_export(o);
    EXPECT_EQ(exported.config.model_type == "smollm3", smollm3);
    save_gguf_adapter(o.output, exported, GgmlType::f32);
    for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
      fs::copy_file(test::source_path("models/tiny-qwen3") / file, model / file, fs::copy_options::skip_existing);
    }
    merge({.model = model, .output = folder_ / "base.gguf", .gguf = GgufModelType::f32, .overwrite = true});
    merge({.model = model,
           .output = folder_ / "merged.gguf",
           .adapters = {{.folder = o.adapter}},
           .gguf = GgufModelType::f32,
           .overwrite = true});
    const GgufFile adapter(o.output), base(folder_ / "base.gguf"), merged(folder_ / "merged.gguf");
    const double scaling =
        JsonObject(adapter.metadata(), name).number("adapter.lora.alpha", {0, 1e9}) / exported.adapter.config.rank;
    for (const Projection p : exported.adapter.config.target_modules) {
      const std::string tensor = *gguf_tensor_name(projection_tensor_name(1, p));
      const auto w = values_of(base, tensor), m = values_of(merged, tensor);
      const auto a = values_of(adapter, tensor + ".lora_a"), b = values_of(adapter, tensor + ".lora_b");
      const auto [out, in] = projection_dims(exported.config, p);
      const std::size_t rank = exported.adapter.config.rank;
      double worst = 0, largest = 0;
      for (std::size_t i = 0; i < w.size(); ++i) {
        double sum = 0;
        for (std::size_t k = 0; k < rank; ++k) sum += double{b[i / in * rank + k]} * a[k * in + i % in];
        worst = std::max(worst, std::abs(w[i] + scaling * sum - m[i]));
        largest = std::max(largest, std::abs(scaling * sum));
      }
      EXPECT_GT(largest, 1e-3) << name << " " << tensor;
      EXPECT_LT(worst, 1e-6) << name << " " << tensor;  // f32 sums of few values below 1
    }
  }
}

TEST_F(AdapterExportTest, SaysWhereLlamaCppLeavesOutTheWindow) {
  EXPECT_TRUE(check_export(options("llama", Consumer::llama_cpp)).notes.empty());
  const auto notes = check_export(options("mistral", Consumer::llama_cpp)).notes;
  ASSERT_EQ(notes.size(), 1);
  EXPECT_NE(notes[0].find("beyond 16 tokens"), std::string::npos) << notes[0];
  EXPECT_TRUE(check_export(options("mistral", Consumer::peft)).notes.empty());
}

TEST_F(AdapterExportTest, ScalingOfRsLoraIsPutIntoAlpha) {
  const AdapterExport o = changed(Consumer::llama_cpp, {{"use_rslora", true}, {"lora_alpha", 3}});
  const ExportedAdapter exported = check_export(o);
  ASSERT_EQ(exported.notes.size(), 1);
  EXPECT_NE(exported.notes[0].find("rsLoRA"), std::string::npos);
  save_gguf_adapter(o.output, exported, GgmlType::f16);
  const GgufFile file(o.output);
  const double rank = exported.adapter.config.rank;
  EXPECT_NEAR(JsonObject(file.metadata(), "a").number("adapter.lora.alpha", {0, 1e9}), 3 * std::sqrt(rank), 1e-5);
  EXPECT_EQ(file.tensors().begin()->second.info().name, "F16");
}

// Alpha over a module's own rank, times its B, is what PEFT's scaling makes of it.
TEST_F(AdapterExportTest, AlphasByModuleArePutIntoB) {
  const AdapterExport o = changed(Consumer::llama_cpp, {{"lora_alpha", 3}, {"alpha_pattern", {{"q_proj", 12}, {"layers.1.mlp.up_proj", 1.5}}}});
  const ExportedAdapter exported = check_export(o);
  ASSERT_EQ(exported.notes.size(), 1);
  save_gguf_adapter(o.output, exported, GgmlType::f32);
  const GgufFile file(o.output);
  EXPECT_EQ(JsonObject(file.metadata(), "a").number("adapter.lora.alpha", {0, 1e9}), 3);
  const auto expect_factor = [&](std::uint32_t layer, Projection p, const std::string& name, float factor) {
    std::vector<float> expected = exported.adapter.at(layer, p).b;
    for (float& value : expected) value *= factor;
    EXPECT_EQ(values_of(file, name + ".lora_b"), expected) << name;
    EXPECT_EQ(values_of(file, name + ".lora_a"), exported.adapter.at(layer, p).a) << name;
  };
  expect_factor(2, Projection::q, "blk.2.attn_q.weight", 4);
  expect_factor(1, Projection::up, "blk.1.ffn_up.weight", 0.5f);
  expect_factor(2, Projection::up, "blk.2.ffn_up.weight", 1);
  for (const Consumer other : {Consumer::vllm, Consumer::mlx}) {
    AdapterExport refused = o;
    refused.consumer = other;
    refused.output = folder_ / "refused";
    expect_error<DataError>([&] { check_export(refused); }, "alpha_pattern");
  }
}

TEST_F(AdapterExportTest, MlxHasTransposedMatricesAndOneScale) {
  const AdapterExport o = options("tiny", Consumer::mlx);
  const ExportedAdapter exported = check_export(o);
  fs::create_directory(o.output);
  save_mlx_adapter(o.output, exported.adapter, exported.config);
  const SafetensorsFile file(o.output / "adapters.safetensors");
  const std::string name = "model.layers.3.mlp.up_proj.lora_b";
  const auto& b = exported.adapter.at(3, Projection::up).b;
  const std::size_t rank = exported.adapter.config.rank, out = 768;
  ASSERT_EQ(file.at(name).shape, (Shape{static_cast<std::int64_t>(rank), 768}));
  const auto values = file.read_as_f32(name);
  for (std::size_t i = 0; i < b.size(); ++i) ASSERT_EQ(values[i % rank * out + i / rank], b[i]);
  const Json config = read_json_file(o.output / "adapter_config.json");
  EXPECT_EQ(config["fine_tune_type"], "lora");
  EXPECT_EQ(config["num_layers"], 4);
  EXPECT_EQ(config["lora_parameters"]["scale"], exported.adapter.config.scaling());
  EXPECT_EQ(config["lora_parameters"]["rank"], rank);
  EXPECT_EQ(config["lora_parameters"]["keys"].size(), 7);
  EXPECT_EQ(config["lora_parameters"]["keys"][0], "self_attn.q_proj");
}

TEST_F(AdapterExportTest, MlxAdaptsTheLastLayersAlone) {
  AdapterExport o = options("tiny", Consumer::mlx);
  const auto of_layers = [&](std::vector<std::uint32_t> layers) {
    o.adapter = folder_ / fmt::format("from{}", layers.front());
    save_lora_adapter(o.adapter, make_lora_adapter(read_model_config(o.model), {.layers_to_transform = std::move(layers)}));
    return check_export(o);
  };
  expect_error<DataError>([&] { of_layers({0, 1}); }, "layers_to_transform", "not the last ones");
  const ExportedAdapter exported = of_layers({2, 3});
  fs::create_directory(o.output);
  save_mlx_adapter(o.output, exported.adapter, exported.config);
  EXPECT_EQ(read_json_file(o.output / "adapter_config.json")["num_layers"], 2);
  EXPECT_EQ(SafetensorsFile(o.output / "adapters.safetensors").tensors().size(), 2 * 7 * 2);
}

TEST_F(AdapterExportTest, MlxTakesDora) {
  AdapterExport o = options("tiny", Consumer::mlx);
  o.adapter = folder_ / "dora";
  save_lora_adapter(o.adapter, make_lora_adapter(read_model_config(o.model), {.rank = 2, .use_dora = true, .target_pattern = ".*layers.3.mlp.up_proj"}));
  const ExportedAdapter exported = check_export(o);
  fs::create_directory(o.output);
  save_mlx_adapter(o.output, exported.adapter, exported.config);
  const Json config = read_json_file(o.output / "adapter_config.json");
  EXPECT_EQ(config["fine_tune_type"], "dora");
  EXPECT_EQ(config["num_layers"], 1);
  EXPECT_EQ(config["lora_parameters"]["keys"], Json::array({"mlp.up_proj"}));
  EXPECT_EQ(SafetensorsFile(o.output / "adapters.safetensors").at("model.layers.3.mlp.up_proj.m").shape, Shape{768});
}

// What the base lost at its start is given back, so that the adapter fits the original weights.
TEST_F(AdapterExportTest, AStartIsTakenOut) {
  AdapterExport o = options("tiny", Consumer::llama_cpp);
  const LoraConfig own = load_lora_adapter(o.adapter, read_model_config(o.model)).config;
  o.start = test::source_path("tests/golden/tiny/adapter_init");
  const ExportedAdapter exported = check_export(o);
  EXPECT_EQ(exported.adapter.config.rank, 2 * own.rank);
  EXPECT_EQ(exported.adapter.config.scaling(), own.scaling());
  EXPECT_EQ(exported.adapter.config.base_model_name_or_path, o.model.string());
  save_gguf_adapter(o.output, exported, GgmlType::f32);
  EXPECT_EQ(GgufFile(o.output).tensors().at("blk.0.ffn_up.weight.lora_a").shape[0], 2 * own.rank);
}

TEST_F(AdapterExportTest, RefusesWhatTheConsumerWouldMisread) {
  for (const Consumer consumer : {Consumer::vllm, Consumer::llama_cpp, Consumer::ollama, Consumer::mlx}) {
    const AdapterExport o = changed(consumer, Json::object(), true);
    expect_error<DataError>([&] { check_export(o); }, "changed", "head that was trained", "nibble merge");
  }
  EXPECT_TRUE(check_export(changed(Consumer::peft, Json::object(), true)).adapter.head.has_value());
  const fs::path dora = test::source_path("tests/golden/dora/adapter_nonzero");
  for (const Consumer consumer : {Consumer::vllm, Consumer::llama_cpp, Consumer::ollama}) {
    AdapterExport o = options("tiny", consumer);
    o.adapter = dora;
    expect_error<DataError>([&] { check_export(o); }, "use_dora", "nibble merge");
  }
  AdapterExport as_it_is = options("tiny", Consumer::peft);
  as_it_is.adapter = dora;
  EXPECT_TRUE(check_export(as_it_is).adapter.has_magnitudes());
  const AdapterExport zero = changed(Consumer::llama_cpp, {{"lora_alpha", 0}});
  expect_error<DataError>([&] { check_export(zero); }, "lora_alpha is 0");
  const AdapterExport in_head = changed(Consumer::llama_cpp, {{"target_modules", Json::array({"lm_head"})}});
  expect_error<DataError>([&] { check_export(in_head); }, "lm_head");
}

TEST_F(AdapterExportTest, ExpertsAndLayersWithoutRopeGoWhereTheyAreKnown) {
  for (const Consumer consumer : {Consumer::peft, Consumer::vllm}) {
    EXPECT_NO_THROW(check_export(options("qwen3-moe", consumer)));
    EXPECT_NO_THROW(check_export(options("smollm3", consumer)));
  }
  EXPECT_NO_THROW(check_export(options("smollm3", Consumer::mlx)));
  expect_error<DataError>([&] { check_export(options("smollm3", Consumer::llama_cpp)); }, "Layer 1 does not rotate", "but every fourth");
  EXPECT_NO_THROW(check_export(options("qwen3-moe", Consumer::llama_cpp)));
  expect_error<DataError>([&] { check_export(options("qwen3-moe", Consumer::mlx)); }, "projections of experts", "mlx_lm");
}

TEST_F(AdapterExportTest, PassesOnWhatPeftAndVllmRead) {
  for (const Consumer consumer : {Consumer::peft, Consumer::vllm}) {
    for (const Json& changes : {Json{{"use_rslora", true}}, Json{{"lora_alpha", 0}}}) {
      const AdapterExport o = changed(consumer, changes);
      const LoraAdapter adapter = load_lora_adapter(o.adapter, read_model_config(o.model));
      const ExportedAdapter exported = check_export(o);
      EXPECT_EQ(exported.adapter.config.scaling(), adapter.config.scaling());
      EXPECT_EQ(exported.adapter.at(1, Projection::up).b, adapter.at(1, Projection::up).b);
    }
    AdapterExport layers = options("tiny", consumer);
    layers.adapter = folder_ / "layers";
    save_lora_adapter(layers.adapter, make_lora_adapter(read_model_config(layers.model), {.layers_to_transform = {0, 2}}));
    EXPECT_EQ(check_export(layers).adapter.config.layers_to_transform, (std::vector<std::uint32_t>{0, 2}));
    fs::remove_all(layers.adapter);
  }
  // The rank is said, and of the window nothing.
  EXPECT_EQ(check_export(options("mistral", Consumer::vllm)).notes.size(), 1);
  EXPECT_TRUE(check_export(options("mistral", Consumer::mlx)).notes.empty());
}

TEST_F(AdapterExportTest, SomeLayersAloneAreTheirTensors) {
  AdapterExport o = options("tiny", Consumer::llama_cpp);
  o.adapter = folder_ / "layers";
  save_lora_adapter(o.adapter, make_lora_adapter(read_model_config(o.model), {.layers_to_transform = {0, 2}}));
  save_gguf_adapter(o.output, check_export(o), GgmlType::f32);
  const GgufFile file(o.output);
  EXPECT_EQ(file.tensors().size(), 2 * 7 * 2);
  EXPECT_TRUE(file.tensors().contains("blk.2.ffn_up.weight.lora_a"));
  EXPECT_FALSE(file.tensors().contains("blk.1.ffn_up.weight.lora_a"));
}

TEST_F(AdapterExportTest, MlxsScaleIsThatOfRsLora) {
  const auto scale = [&](const Json& changes) {
    AdapterExport o = changed(Consumer::mlx, changes);
    const ExportedAdapter exported = check_export(o);
    fs::create_directory(o.output);
    save_mlx_adapter(o.output, exported.adapter, read_model_config(o.model));
    const double result = read_json_file(o.output / "adapter_config.json")["lora_parameters"]["scale"];
    fs::remove_all(o.output);
    return result;
  };
  EXPECT_NEAR(scale({{"use_rslora", true}, {"lora_alpha", 3}}), 3 / std::sqrt(8.0), 1e-9);
  EXPECT_EQ(scale({{"lora_alpha", 0}}), 0);
}

TEST_F(AdapterExportTest, RefusesOutputsThatAreThere) {
  AdapterExport o = options("tiny", Consumer::llama_cpp);
  o.output = folder_.path();
  expect_error<UsageError>([&] { check_export(o); }, "is a folder; a GGUF file is one file");
  o.output = folder_.write("there.gguf", "x");
  expect_error<UsageError>([&] { check_export(o); }, "there already");
  o.consumer = Consumer::mlx;
  expect_error<UsageError>([&] { check_export(o); }, "is a file; it must be a folder");
  o.output = o.adapter;
  expect_error<UsageError>([&] { check_export(o); }, "would take the place of");
}

TEST_F(AdapterExportTest, RefusesFilesOfWhatItReads) {
  const fs::path adapter = folder_.path() / "adapter";
  AdapterExport o = options("tiny", Consumer::llama_cpp);
  fs::copy(o.adapter, adapter);
  o.adapter = adapter, o.output = adapter / "adapter_model.safetensors", o.overwrite = true;
  expect_error<UsageError>([&] { check_export(o); }, "take the place of a file of", "adapter");
  o.output = adapter / "adapter.gguf";
  std::ofstream(o.output) << "an earlier one";
  EXPECT_NO_THROW(check_export(o));
}

TEST_F(AdapterExportTest, RefusesModelsThatAreNone) {
  AdapterExport o = options("tiny", Consumer::peft);
  o.model = folder_.path() / "none";
  expect_error<DataError>([&] { check_export(o); }, "none");
}

TEST_F(AdapterExportTest, TellsVllmsRank) {
  const ExportedAdapter exported = check_export(options("tiny", Consumer::vllm));
  ASSERT_EQ(exported.notes.size(), 1);
  EXPECT_NE(exported.notes[0].find("--max-lora-rank 8 "), std::string::npos) << exported.notes[0];
}

}  // namespace
}  // namespace nibble::adapter_export_test
