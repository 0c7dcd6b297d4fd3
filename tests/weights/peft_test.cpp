#include "nibble/weights/peft.h"

#include <cmath>
#include <limits>

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/base/rng.h"
#include "nibble/io/json.h"
#include "nibble/io/safetensors.h"
#include "tests/support/files.h"

namespace nibble::peft_test {
namespace {

using test::expect_error;

fs::path golden(const std::string& name) { return test::source_path("tests/golden/tiny/" + name); }

ModelConfig tiny_model() { return read_model_config(test::source_path("models/tiny-qwen3")); }

TEST(LoraAdapter, ReadsWhatPeftWrote) {
  const auto adapter = load_lora_adapter(golden("adapter_trained"), tiny_model());
  EXPECT_EQ(adapter.config.base_model_name_or_path, "tiny-qwen3");
  EXPECT_EQ(adapter.config.rank, 8);
  EXPECT_EQ(adapter.config.scaling(), 2.0);
  EXPECT_EQ(adapter.config.lora_dropout, 0.0);
  EXPECT_FALSE(adapter.config.use_rslora);
  EXPECT_TRUE(std::equal(all_projections.begin(), all_projections.end(), adapter.config.target_modules.begin()));
  EXPECT_EQ(adapter.layers.size(), 4);
  const SafetensorsFile file(golden("adapter_trained") / "adapter_model.safetensors");
  EXPECT_EQ(adapter.at(3, Projection::down).a,
            file.read_as_f32("base_model.model.model.layers.3.mlp.down_proj.lora_A.weight"));
  EXPECT_EQ(adapter.at(1, Projection::k).b,
            file.read_as_f32("base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"));
  EXPECT_EQ(adapter.parameter_count(), 163840);
}

TEST(LoraAdapter, WritesTheFileThatPeftWrites) {
  const test::TemporaryFolder folder;
  save_lora_adapter(folder / "out", load_lora_adapter(golden("adapter_trained"), tiny_model()));
  EXPECT_TRUE(test::slurp(folder / "out/adapter_model.safetensors") ==
              test::slurp(golden("adapter_trained") / "adapter_model.safetensors"));
  const auto ours = read_json_file(folder / "out/adapter_config.json");
  const auto theirs = read_json_file(golden("adapter_trained") / "adapter_config.json");
  for (const auto& [key, value] : ours.items()) {
    ASSERT_TRUE(theirs.contains(key)) << key;
    if (key == "target_modules") continue;
    EXPECT_EQ(value, theirs[key]) << key;
  }
  EXPECT_EQ(ours["target_modules"], Json::parse(R"(["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj",
      "v_proj"])"));
  EXPECT_EQ(ours.size(), 19);
  EXPECT_TRUE(
      test::slurp(folder / "out/README.md").starts_with("---\nbase_model: \"tiny-qwen3\"\nlibrary_name: peft\n"));
}

TEST(LoraAdapter, LeavesACardThatSomebodyWrote) {
  const test::TemporaryFolder folder;
  LoraAdapter adapter = load_lora_adapter(golden("adapter_trained"), tiny_model());
  save_lora_adapter(folder.path(), adapter);
  EXPECT_TRUE(is_adapter_card(folder / "README.md"));
  adapter.config.base_model_name_or_path = "other";
  save_lora_adapter(folder.path(), adapter);
  EXPECT_NE(test::slurp(folder / "README.md").find("base_model: \"other\""), std::string::npos) << "its own is written anew";
  folder.write("README.md", "# Mine\n");
  EXPECT_FALSE(is_adapter_card(folder / "README.md"));
  save_lora_adapter(folder.path(), adapter);
  EXPECT_EQ(test::slurp(folder / "README.md"), "# Mine\n");
}

// Each expert's by its own name, as PEFT has them of modules.
TEST(LoraAdapter, HoldsThoseOfExperts) {
  const auto folder = test::source_path("tests/golden/qwen3-moe");
  const auto model = read_model_config(folder / "model");
  const fs::path theirs = folder / "adapter_nonzero";
  const auto adapter = load_lora_adapter(theirs, model);
  const SafetensorsFile file(theirs / "adapter_model.safetensors");
  for (std::uint32_t expert = 0; expert < 4; ++expert) {
    const std::string module = fmt::format("base_model.model.model.layers.1.mlp.experts.{}.down_proj.", expert);
    const auto a = LoraAdapter::part_of(adapter.at(1, Projection::down).a, expert, 4);
    const auto b = LoraAdapter::part_of(adapter.at(1, Projection::down).b, expert, 4);
    EXPECT_EQ(std::vector<float>(a.begin(), a.end()), file.read_as_f32(module + "lora_A.weight"));
    EXPECT_EQ(std::vector<float>(b.begin(), b.end()), file.read_as_f32(module + "lora_B.weight"));
  }
  const test::TemporaryFolder out;
  save_lora_adapter(out / "a", adapter);
  EXPECT_TRUE(test::slurp(out / "a/adapter_model.safetensors") == test::slurp(theirs / "adapter_model.safetensors"));
  EXPECT_EQ(make_lora_adapter(model, adapter.config).parameter_count(), adapter.parameter_count());
  EXPECT_EQ(usual_targets(model), (std::vector{Projection::q, Projection::k, Projection::v, Projection::o}));
  EXPECT_TRUE(adapts_experts(model, adapter.config));
  EXPECT_FALSE(adapts_experts(model, {.target_modules = usual_targets(model)}));
  EXPECT_FALSE(adapts_experts(tiny_model(), {}));
  expect_error<DataError>([&] { make_lora_adapter(model, {.rank_pattern = {{"experts.1.up_proj", 4}}}); }, "of experts, which have to be alike");
}

TEST(LoraAdapter, ComesBackAsItWasSaved) {
  const test::TemporaryFolder folder;
  const auto model = tiny_model();
  auto adapter = make_lora_adapter(model, {.base_model_name_or_path = "org/name \"x\"",
                                           .rank = 5,
                                           .lora_alpha = 7.5,
                                           .lora_dropout = 0.1,
                                           .use_rslora = true,
                                           .target_modules = {Projection::v, Projection::up}});
  EXPECT_FALSE(adapter.at(0, Projection::q).used());
  Rng rng(1);
  for (auto& layer : adapter.layers) {
    for (auto& matrices : layer) {
      for (auto& value : matrices.a) value = rng.normal();
      for (auto& value : matrices.b) value = rng.normal();
    }
  }
  save_lora_adapter(folder.path(), adapter);
  const auto back = load_lora_adapter(folder.path(), model);
  EXPECT_EQ(back.config.base_model_name_or_path, adapter.config.base_model_name_or_path);
  EXPECT_EQ(back.config.lora_alpha, 7.5);
  EXPECT_EQ(back.config.lora_dropout, 0.1);
  EXPECT_EQ(back.config.scaling(), 7.5 / std::sqrt(5.0));
  EXPECT_EQ(back.config.target_modules, adapter.config.target_modules);
  for (std::uint32_t layer = 0; layer < 4; ++layer) {
    for (const Projection p : all_projections) {
      EXPECT_EQ(back.at(layer, p).a, adapter.at(layer, p).a);
      EXPECT_EQ(back.at(layer, p).b, adapter.at(layer, p).b);
    }
  }
}

class LoraConfigTest : public testing::Test {
 protected:
  LoraConfig read(const std::string& key, const std::string& value) {
    auto json = read_json_file(golden("adapter_trained") / "adapter_config.json");
    json[key] = Json::parse(value);
    folder_.write("adapter_config.json", json.dump());
    return read_lora_config(folder_.path());
  }

  test::TemporaryFolder folder_;
};

TEST_F(LoraConfigTest, ReadsTargetsInEachForm) {
  EXPECT_EQ(read("target_modules", "\"all-linear\"").target_modules.size(), 7);
  EXPECT_EQ(read("target_modules", R"(["self_attn.v_proj", "q_proj", "q_proj"])").target_modules,
            (std::vector<Projection>{Projection::q, Projection::v}));
  EXPECT_EQ(read("a_key_of_a_later_version", "true").rank, 8);
  EXPECT_EQ(read("lora_alpha", "0.5").lora_alpha, 0.5);
}

TEST_F(LoraConfigTest, NamesWhatIsNotSupported) {
  struct Case {
    const char* key;
    const char* value;
    const char* part;
  };
  for (const auto& [key, value, part] : std::initializer_list<Case>{
           {"peft_type", "\"LOHA\"", "\"LORA\"; found \"LOHA\""},
           {"bias", "\"all\"", "\"none\"; found \"all\""},
           {"lora_bias", "true", "not supported"},
           {"fan_in_fan_out", "true", "not supported"},
           {"modules_to_save", "[\"embed_tokens\"]", "no other module"},
           {"modules_to_save", "[\"lm_head\", \"embed_tokens\"]", "no other module"},
           {"modules_to_save", "\"lm_head\"", "no other module"},
           {"rank_pattern", "[4]", "must be an object"},
           {"layers_to_transform", "\"0\"", "an integer"},
           {"layers_to_transform", "[-1]", "an integer from 0"},
           {"layers_pattern", "\"blocks\"", "unset or \"layers\""},
           {"init_lora_weights", "\"pissa\"", "change the base"},
           {"init_lora_weights", "3", "must be a string"},
           {"target_modules", "[\"lm_head\"]", "holds \"lm_head\""},
           {"target_modules", "[\"mlp.q_proj\"]", "holds \"mlp.q_proj\""},
           {"target_modules", "[\"model.layers.0.self_attn.q_proj\"]", "holds \"model"},
           {"target_modules", "[]", "at least one"},
           {"target_modules", "\"\"", "not empty"},
           {"r", "0", "an integer from 1"},
           {"r", "null", "absent"},
           {"lora_alpha", "null", "absent"},
           {"lora_dropout", "1.5", "a number from 0 to 1"},
       }) {
    expect_error<DataError>([&] { read(key, value); }, "adapter_config.json", fmt::format("\"{}\"", key), part);
  }
}

MatrixSource matrix_of(std::uint32_t rows, std::uint32_t columns, const std::vector<float>& values) {
  return {.rows = rows, .columns = columns, .read = [&values](const PieceSink& sink) {
            const std::size_t half = values.size() / 2;
            sink(std::span(values).first(half), 0);
            sink(std::span(values).subspan(half), half);
          }};
}

std::vector<float> values_of(const MatrixSource& source) {
  std::vector<float> values;
  source.read([&](std::span<const float> piece, std::uint64_t first) {
    EXPECT_EQ(first, values.size());
    values.insert(values.end(), piece.begin(), piece.end());
  });
  return values;
}

TEST_F(LoraConfigTest, ReadsWhetherTheHeadWasTrained) {
  EXPECT_TRUE(read("modules_to_save", "[\"lm_head\"]").saves_head);
  for (const char* nothing : {"null", "[]"}) EXPECT_FALSE(read("modules_to_save", nothing).saves_head);
}

// A small model, so that its head is too.
class AdapterWithHead : public testing::Test {
 protected:
  AdapterWithHead() {
    model_.vocab_size = 11;
    for (float& value : values_) value = rng_.normal();
    adapter_ = make_lora_adapter(model_, {.rank = 2, .saves_head = true, .target_modules = {Projection::k}});
    adapter_.head = matrix_of(11, 256, values_);
  }

  Rng rng_{1};
  ModelConfig model_ = tiny_model();
  std::vector<float> values_ = std::vector<float>(11 * 256);
  LoraAdapter adapter_;
  test::TemporaryFolder folder_;
};

TEST_F(AdapterWithHead, ComesBackAsItWasSaved) {
  save_lora_adapter(folder_.path(), adapter_);
  EXPECT_EQ(read_json_file(folder_ / "adapter_config.json")["modules_to_save"], Json::array({"lm_head"}));
  EXPECT_NE(test::slurp(folder_ / "README.md").find("`lm_head`"), std::string::npos);
  const SafetensorsFile file(folder_ / "adapter_model.safetensors");
  EXPECT_EQ(file.read_as_f32("base_model.model.lm_head.weight"), values_);
  const LoraAdapter back = load_lora_adapter(folder_.path(), model_);
  ASSERT_TRUE(back.head.has_value());
  EXPECT_EQ(back.head->rows, 11u);
  EXPECT_EQ(back.head->columns, 256u);
  EXPECT_EQ(values_of(*back.head), values_);
  EXPECT_EQ(values_of(*back.head), values_);  // as often as one likes
  // It may be saved over itself.
  save_lora_adapter(folder_.path(), back);
  EXPECT_EQ(values_of(*load_lora_adapter(folder_.path(), model_).head), values_);
}

TEST_F(AdapterWithHead, OfAnotherVocabularyIsRefused) {
  save_lora_adapter(folder_.path(), adapter_);
  model_.vocab_size = 12;
  expect_error<DataError>([&] { load_lora_adapter(folder_.path(), model_); }, "base_model.model.lm_head.weight",
                          "has the shape [11, 256]", "make it [12, 256]");
}

TEST_F(AdapterWithHead, IsRefusedWithoutItsTensor) {
  adapter_.head.reset();
  adapter_.config.saves_head = false;
  save_lora_adapter(folder_.path(), adapter_);
  auto json = read_json_file(folder_ / "adapter_config.json");
  json["modules_to_save"] = {"lm_head"};
  folder_.write("adapter_config.json", json.dump());
  expect_error<DataError>([&] { load_lora_adapter(folder_.path(), model_); }, "base_model.model.lm_head.weight",
                          "[11, 256]", "missing");
}

TEST_F(AdapterWithHead, IsRefusedWhereTheConfigDoesNotNameIt) {
  save_lora_adapter(folder_.path(), adapter_);
  auto json = read_json_file(folder_ / "adapter_config.json");
  json["modules_to_save"] = nullptr;
  folder_.write("adapter_config.json", json.dump());
  expect_error<DataError>([&] { load_lora_adapter(folder_.path(), model_); }, "base_model.model.lm_head.weight",
                          "no LoRA matrix");
  adapter_.config.saves_head = false;
  expect_error<Error>([&] { save_lora_adapter(folder_ / "other", adapter_); }, "must agree");
}

TEST_F(AdapterWithHead, NamesAValueThatIsNotFinite) {
  values_[2000] = std::numeric_limits<float>::quiet_NaN();
  save_lora_adapter(folder_.path(), adapter_);
  const LoraAdapter back = load_lora_adapter(folder_.path(), model_);
  expect_error<DataError>([&] { values_of(*back.head); }, "base_model.model.lm_head.weight", "not finite", "index 2000");
}

class BrokenAdapter : public testing::Test {
 protected:
  BrokenAdapter() {
    save_lora_adapter(folder_.path(), make_lora_adapter(model_, {.rank = 4, .target_modules = {Projection::q}}));
  }

  // Rewrites the weights after `change`.
  template <typename Change>
  void rewrite(Change change) {
    const auto path = folder_ / "adapter_model.safetensors";
    std::map<std::string, std::pair<TensorSpec, std::vector<float>>> tensors;
    {
      const SafetensorsFile file(path);
      for (const auto& [name, info] : file.tensors()) {
        tensors[name] = {{name, DType::f32, info.shape}, file.read_as_f32(info)};
      }
    }
    change(tensors);
    std::vector<TensorSpec> specs;
    for (const auto& [name, tensor] : tensors) specs.push_back(tensor.first);
    SafetensorsWriter writer(path, specs);
    for (const auto& spec : writer.tensors()) writer.append(std::as_bytes(std::span(tensors[spec.name].second)));
    writer.finish();
  }
  template <typename... Parts>
  void refuse(const Parts&... parts) {
    expect_error<DataError>([&] { load_lora_adapter(folder_.path(), model_); }, folder_.path().string(), parts...);
  }

  ModelConfig model_ = tiny_model();
  test::TemporaryFolder folder_;
  std::string a_name_ = peft_tensor_name(1, Projection::q, LoraMatrix::a);
};

TEST_F(BrokenAdapter, NamesAMissingTensor) {
  rewrite([&](auto& tensors) { tensors.erase(a_name_); });
  refuse(a_name_, "[4, 256]", "missing");
}

TEST_F(BrokenAdapter, NamesExpectedAndFoundShapes) {
  rewrite([&](auto& tensors) { tensors[a_name_].first.shape = {256, 4}; });
  refuse(a_name_, "has the shape [256, 4]", "make it [4, 256]");
}

TEST_F(BrokenAdapter, NamesATensorThatHasNoPlace) {
  rewrite([&](auto& tensors) {
    const std::string name = peft_tensor_name(4, Projection::q, LoraMatrix::a);
    tensors[name] = {{name, DType::f32, {1}}, {0.0f}};
  });
  refuse("layers.4.self_attn.q_proj.lora_A.weight", "no LoRA matrix");
}

TEST_F(BrokenAdapter, RefusesValuesThatAreNotFinite) {
  rewrite([&](auto& tensors) { tensors[a_name_].second[17] = std::numeric_limits<float>::infinity(); });
  refuse(a_name_, "not finite", "index 17");
}

TEST_F(BrokenAdapter, RefusesAPickle) {
  fs::remove(folder_ / "adapter_model.safetensors");
  refuse("no adapter_model.safetensors");
  folder_.write("adapter_model.bin", "PK");
  refuse("adapter_model.bin", "save it as safetensors");
  fs::remove(folder_ / "adapter_config.json");
  refuse("no adapter_config.json");
}

TEST_F(BrokenAdapter, IsToldFromWhatIsNoFolder) {
  const auto read = [&](const char* name) { read_lora_config(folder_ / name); };
  test::expect_error<DataError>([&] { read("nowhere"); }, "nowhere", "no such folder");
  test::expect_error<DataError>([&] { read("adapter_model.safetensors"); }, "This is a file");
}

TEST(LoraAdapter, ReadsHalfPrecision) {
  const test::TemporaryFolder folder;
  const auto model = tiny_model();
  save_lora_adapter(folder.path(), make_lora_adapter(model, {.rank = 1, .target_modules = {Projection::k}}));
  std::vector<TensorSpec> specs;
  for (std::uint32_t layer = 0; layer < 4; ++layer) {
    specs.push_back({peft_tensor_name(layer, Projection::k, LoraMatrix::a), DType::bf16, {1, 256}});
    specs.push_back({peft_tensor_name(layer, Projection::k, LoraMatrix::b), DType::f16, {128, 1}});
  }
  SafetensorsWriter writer(folder / "adapter_model.safetensors", specs);
  for (const auto& spec : writer.tensors()) {
    const bool is_a = spec.dtype == DType::bf16;
    const std::vector<std::uint16_t> values(is_a ? 256 : 128, is_a ? f32_to_bf16(-3.0f) : f32_to_f16(0.5f));
    writer.append(std::as_bytes(std::span(values)));
  }
  writer.finish();
  const auto adapter = load_lora_adapter(folder.path(), model);
  EXPECT_EQ(adapter.at(2, Projection::k).a, std::vector<float>(256, -3.0f));
  EXPECT_EQ(adapter.at(2, Projection::k).b, std::vector<float>(128, 0.5f));
}

TEST(LoraAdapter, CountsTheParametersOfQwen3_4B) {
  const ModelConfig model{.model_type = "qwen3",
                          .hidden_size = 2560,
                          .num_layers = 36,
                          .vocab_size = 151936,
                          .num_heads = 32,
                          .num_kv_heads = 8,
                          .head_dim = 128,
                          .intermediate_size = 9728};
  EXPECT_EQ(make_lora_adapter(model, {.rank = 16}).parameter_count(), 33'030'144);
}

TEST(LoraAdapter, IsNotWrittenWithMatricesOfTheWrongSize) {
  const test::TemporaryFolder folder;
  auto adapter = make_lora_adapter(tiny_model(), {.rank = 4});
  adapter.at(2, Projection::o).b.pop_back();
  expect_error<Error>([&] { save_lora_adapter(folder.path(), adapter); }, "layers.2.self_attn.o_proj.lora_B",
                      "no multiple");
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

}  // namespace
}  // namespace nibble::peft_test
