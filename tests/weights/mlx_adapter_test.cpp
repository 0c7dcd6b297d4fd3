#include "nibble/weights/mlx_adapter.h"

#include "nibble/base/error.h"
#include "nibble/io/json.h"
#include "tests/support/files.h"

namespace nibble::mlx_adapter_test {
namespace {

using test::expect_error;

const fs::path fixture = test::source_path("tests/weights/mlx");

constexpr std::array one{1.0f};

ModelConfig tiny_model() { return read_model_config(test::source_path("models/tiny-qwen3")); }

class MlxAdapter : public testing::Test {
 protected:
  // The fixture with keys of its config changed.
  fs::path changed(const Json& changes) {
    fs::copy_file(fixture / "adapters.safetensors", folder_ / "adapters.safetensors", fs::copy_options::overwrite_existing);
    Json config = read_json_file(fixture / "adapter_config.json");
    config.merge_patch(changes);
    folder_.write("adapter_config.json", config.dump());
    return folder_.path();
  }
  test::TemporaryFolder folder_;
};

// Two layers, in each q's A and B and v's: 512, 768, 512 and 256 elements in the order of the file.
TEST_F(MlxAdapter, IsReadAsMlxLmWritesIt) {
  const LoraAdapter adapter = load_lora_adapter(fixture, tiny_model());
  EXPECT_EQ(adapter.config.rank, 2u);
  EXPECT_DOUBLE_EQ(adapter.config.scaling(), 20);
  EXPECT_EQ(adapter.config.target_modules, (std::vector{Projection::q, Projection::v}));
  EXPECT_EQ(adapter.config.layers_to_transform, (std::vector<std::uint32_t>{2, 3}));
  EXPECT_EQ(adapter.config.base_model_name_or_path, "tiny-qwen3");
  EXPECT_FALSE(adapter.at(1, Projection::q).used());
  const std::size_t second_layer = 2048;
  const auto& q = adapter.at(3, Projection::q);
  EXPECT_FLOAT_EQ(q.a[1 * 256 + 5], static_cast<float>(second_layer + 5 * 2 + 1) / 1000);                // A of row 1, input 5
  EXPECT_FLOAT_EQ(q.b[7 * 2 + 1], static_cast<float>(second_layer + 512 + 1 * 384 + 7) / 1000);         // B of output 7, column 1
  EXPECT_FLOAT_EQ(adapter.at(3, Projection::v).b[127 * 2 + 1], 4.095f);
}

TEST_F(MlxAdapter, ComesBackAsItWasWritten) {
  for (const bool dora : {false, true}) {
    LoraAdapter adapter = make_lora_adapter(tiny_model(), {.rank = 3, .lora_alpha = 4.5, .use_dora = dora, .target_modules = {Projection::v, Projection::down},
                                                           .layers_to_transform = {1, 2, 3}});
    float value = 0;
    for (auto& layer : adapter.layers) {
      for (LoraMatrices& matrices : layer) {
        for (auto* numbers : {&matrices.a, &matrices.b, &matrices.magnitude}) {
          for (float& number : *numbers) number = value += 0.25f;
        }
      }
    }
    save_mlx_adapter(folder_.path(), adapter, tiny_model());
    const LoraAdapter back = load_lora_adapter(folder_.path(), tiny_model());
    EXPECT_EQ(back.config.use_dora, dora);
    EXPECT_DOUBLE_EQ(back.config.scaling(), 1.5);
    EXPECT_EQ(back.config.layers_to_transform, adapter.config.layers_to_transform);
    for (std::uint32_t layer = 0; layer < 4; ++layer) {
      for (const Projection p : all_projections) {
        for (const LoraMatrix matrix : lora_matrices(true)) EXPECT_EQ(back.at(layer, p).matrix(matrix), adapter.at(layer, p).matrix(matrix));
      }
    }
  }
}

TEST_F(MlxAdapter, WhatDoesNotFitIsNamed) {
  expect_error<DataError>([&] { load_lora_adapter(changed({{"fine_tune_type", "full"}}), tiny_model()); }, "fine_tune_type");
  expect_error<DataError>([&] { load_lora_adapter(changed({{"fine_tune_type", "dora"}}), tiny_model()); }, "model.layers.2.self_attn.q_proj.m");
  expect_error<DataError>([&] { load_lora_adapter(changed({{"lora_parameters", {{"rank", 3}}}}), tiny_model()); }, "lora_a", "[256, 2]");
  expect_error<DataError>([&] { load_lora_adapter(changed({{"lora_parameters", {{"scale", nullptr}}}}), tiny_model()); }, "scale");
  ModelConfig short_model = tiny_model();
  short_model.num_layers = 3;
  expect_error<DataError>([&] { load_lora_adapter(fixture, short_model); }, "Layer 3");
  fs::remove(folder_ / "adapters.safetensors");
  EXPECT_THROW(load_lora_adapter(folder_.path(), tiny_model()), Error);
}

TEST_F(MlxAdapter, TensorsOfOtherModulesAreNamed) {
  changed(Json::object());
  for (const char* name : {"lm_head.lora_a", "model.layers.0.mlp.q_proj.lora_a", "model.layers.99999.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj"}) {
    SafetensorsWriter writer(folder_ / "adapters.safetensors", {{name, DType::f32, {1}}});
    writer.append(std::as_bytes(std::span(one)));
    writer.finish();
    expect_error<DataError>([&] { read_lora_config(folder_.path()); }, name);
  }
  // Not the same projections in both layers.
  SafetensorsWriter writer(folder_ / "adapters.safetensors", {{"model.layers.0.self_attn.q_proj.lora_a", DType::f32, {1}},
                                                              {"model.layers.1.self_attn.k_proj.lora_a", DType::f32, {1}}});
  for (int i = 0; i < 2; ++i) writer.append(std::as_bytes(std::span(one)));
  writer.finish();
  expect_error<DataError>([&] { read_lora_config(folder_.path()); }, "layers 0 and 1");
}

}  // namespace
}  // namespace nibble::mlx_adapter_test
