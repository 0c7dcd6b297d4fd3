#include "nibble/weights/config.h"

#include "nibble/base/error.h"
#include "tests/support/files.h"

namespace nibble::config_test {
namespace {

using test::expect_error;

// As transformers 4 writes the config of Qwen3-4B.
Json qwen3_4b() {
  return Json::parse(R"({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
      "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560,
      "initializer_range": 0.02, "intermediate_size": 9728, "max_position_embeddings": 40960, "max_window_layers": 36,
      "model_type": "qwen3", "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
      "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
      "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
      "use_sliding_window": false, "vocab_size": 151936})");
}

ModelConfig parse(const Json& json) { return parse_model_config(JsonObject(json, "config.json")); }

TEST(ModelConfig, ReadsTransformers4) {
  const auto config = parse(qwen3_4b());
  EXPECT_EQ(config.hidden_size, 2560);
  EXPECT_EQ(config.num_layers, 36);
  EXPECT_EQ(config.vocab_size, 151936);
  EXPECT_EQ(config.num_heads, 32);
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.intermediate_size, 9728);
  EXPECT_EQ(config.max_position_embeddings, 40960);
  EXPECT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_EQ(config.rope.theta, 1e6f);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.eos_token_ids, std::vector<std::uint32_t>{151645});
}

TEST(ModelConfig, ReadsTransformers5) {
  const auto config = read_model_config(test::source_path("models/tiny-qwen3"));
  EXPECT_EQ(config.hidden_size, 256);
  EXPECT_EQ(config.num_heads, 6);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.rope.theta, 1e6f);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.eos_token_ids, std::vector<std::uint32_t>{4095});
  EXPECT_FALSE(config.generation.temperature.has_value());
}

// Qwen's windows begin at layer max_window_layers; a model whose layers all lie below has none.
TEST(ModelConfig, TakesWindowsThatNoLayerHas) {
  for (const char* family : {"qwen2", "qwen3"}) {
    auto json = qwen3_4b();
    json["model_type"] = family;
    json["use_sliding_window"] = true;
    EXPECT_NO_THROW(parse(json)) << "no width is given";
    json["sliding_window"] = 4096;
    EXPECT_EQ(parse(json).sliding_window, 0u);
    json["max_window_layers"] = 35;
    expect_error<DataError>([&] { parse(json); }, "\"use_sliding_window\"", "at least 36");
    json["layer_types"] = std::vector<std::string>(36, "full_attention");
    EXPECT_NO_THROW(parse(json));
    json["layer_types"][35] = "sliding_attention";
    expect_error<DataError>([&] { parse(json); }, "sliding_attention");
    json.erase("layer_types");
    json.erase("max_window_layers");
    expect_error<DataError>([&] { parse(json); }, "at least 36");
    json["num_hidden_layers"] = 28;
    EXPECT_NO_THROW(parse(json));
  }
}

TEST(ModelConfig, FillsInWhatIsAbsent) {
  auto json = qwen3_4b();
  for (const auto* key : {"num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta",
                          "rope_scaling", "tie_word_embeddings", "eos_token_id", "hidden_act"}) {
    json.erase(key);
  }
  const auto config = parse(json);
  EXPECT_EQ(config.num_kv_heads, 32);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.max_position_embeddings, 32768);
  EXPECT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_EQ(config.rope.theta, 10000.0f);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_TRUE(config.eos_token_ids.empty());
}

// SmolLM3: which layers rotate is a list or an interval, and keys that are left out stand for other values than elsewhere.
TEST(ModelConfig, KnowsLayersThatDoNotRotate) {
  auto json = qwen3_4b();
  EXPECT_TRUE(parse(json).nope.empty());
  json["model_type"] = "smollm3";
  for (const auto* key : {"num_key_value_heads", "head_dim", "max_position_embeddings", "rope_theta", "tie_word_embeddings"}) json.erase(key);
  json["num_hidden_layers"] = 6;
  const auto config = parse(json);
  EXPECT_EQ(config.nope, (std::vector<bool>{false, false, false, true, false, false}));
  EXPECT_FALSE(config.rotates(3));
  EXPECT_TRUE(config.rotates(4));
  EXPECT_EQ(config.num_kv_heads, 4u);
  EXPECT_EQ(config.head_dim, 80u);
  EXPECT_EQ(config.max_position_embeddings, 32768u);
  EXPECT_EQ(config.rope.theta, 2e6f);
  EXPECT_TRUE(config.tie_word_embeddings);
  json["no_rope_layer_interval"] = 2;
  EXPECT_EQ(parse(json).nope, (std::vector<bool>{false, true, false, true, false, true}));
  json["no_rope_layers"] = {1, 1, 0, 0, 1, 1, 0};
  EXPECT_EQ(parse(json).nope, (std::vector<bool>{false, false, true, true, false, false})) << "more than there are layers";
  json["no_rope_layers"] = {1, 0, 1};
  expect_error<DataError>([&] { parse(json); }, "\"no_rope_layers\"", "at least 6 numbers");
  json["no_rope_layers"] = {1, 1, 2, 0, 1, 1};
  expect_error<DataError>([&] { parse(json); }, "\"no_rope_layers\"", "from 0 to 1");
  json["no_rope_layers"] = Json::array();
  expect_error<DataError>([&] { parse(json); }, "\"no_rope_layers\"", "at least 6 numbers");
  json.erase("no_rope_layers");
  json["no_rope_layer_interval"] = 0;
  expect_error<DataError>([&] { parse(json); }, "\"no_rope_layer_interval\"", "from 1");
}

TEST(ModelConfig, RefusesWindowsOfLayersThatDoNotRotate) {
  auto json = qwen3_4b();
  json["model_type"] = "smollm3";
  json["use_sliding_window"] = true;
  EXPECT_NO_THROW(parse(json)) << "no width is given";
  json["sliding_window"] = 4096;
  expect_error<DataError>([&] { parse(json); }, "\"use_sliding_window\" must be false, as windows in some layers alone");
  json["no_rope_layers"] = std::vector<int>(36, 1);
  EXPECT_NO_THROW(parse(json));
  json["layer_types"] = std::vector<std::string>(36, "full_attention");
  json["layer_types"][3] = "sliding_attention";
  expect_error<DataError>([&] { parse(json); }, "sliding_attention");
}

TEST(ModelConfig, KnowsMixturesOfExperts) {
  Json json = read_json_file(test::source_path("tests/golden/qwen3-moe/model/config.json"));
  const auto config = parse(json);
  EXPECT_TRUE(config.has_experts());
  EXPECT_EQ(config.experts.count, 4u);
  EXPECT_EQ(config.experts.per_token, 2u);
  EXPECT_EQ(config.experts.intermediate_size, 8u);
  EXPECT_TRUE(config.experts.normalised);
  EXPECT_TRUE(config.family.qk_norm);
  EXPECT_EQ(matrices_of(config, Projection::o), 1u);
  EXPECT_EQ(matrices_of(config, Projection::gate), 4u);
  EXPECT_EQ(projection_dims(config, Projection::down).out, 64u);
  EXPECT_EQ(projection_dims(config, Projection::down).in, 8u);
  EXPECT_EQ(single_projections(config).size(), 4u);
  EXPECT_EQ(module_names(4, 1, Projection::up)[3], "model.layers.1.mlp.experts.3.up_proj");
  EXPECT_EQ(module_names(4, 1, Projection::q), std::vector<std::string>{"model.layers.1.self_attn.q_proj"});
  EXPECT_EQ(module_names(0, 1, Projection::up), std::vector<std::string>{"model.layers.1.mlp.up_proj"});
  json["num_experts"] = 6;  // as transformers 4 calls it
  json.erase("num_local_experts");
  json.erase("intermediate_size");
  EXPECT_EQ(parse(json).experts.count, 6u);
  for (const auto* key : {"num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "head_dim"}) json.erase(key);
  const auto usual = parse(json);
  EXPECT_EQ(usual.experts.count, 128u);
  EXPECT_EQ(usual.experts.per_token, 8u);
  EXPECT_EQ(usual.experts.intermediate_size, 768u);
  EXPECT_FALSE(usual.experts.normalised);
  EXPECT_EQ(usual.head_dim, 16u);
  EXPECT_FALSE(parse(qwen3_4b()).has_experts());
}

TEST(ModelConfig, RefusesMixturesThatAreNotComputed) {
  const Json golden = read_json_file(test::source_path("tests/golden/qwen3-moe/model/config.json"));
  const auto refuse = [&](const char* key, const Json& value, auto... parts) {
    Json json = golden;
    json[key] = value;
    expect_error<DataError>([&] { parse(json); }, std::string("\"") + key + "\"", parts...);
  };
  refuse("num_experts_per_tok", 5, "from 1 to 4", "found 5");
  refuse("num_local_experts", 0, "from 1 to 1024");
  refuse("num_experts", 1 << 20, "from 1 to 1024");
  refuse("decoder_sparse_step", 2, "layers without experts");
  refuse("mlp_only_layers", {1}, "layers without experts");
  refuse("moe_intermediate_size", 12, "a multiple of 8");
  Json large = golden;
  large["num_local_experts"] = 1024;
  large["moe_intermediate_size"] = 1 << 16;
  expect_error<DataError>([&] { parse(large); }, "1024 experts", "4294967296 elements");
}

// Where config.json says little, each family has what its class of transformers has.
TEST(ModelConfig, FamiliesDiffer) {
  auto json = qwen3_4b();
  for (const auto* key : {"num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window"}) json.erase(key);
  json["num_attention_heads"] = 40;
  json["hidden_size"] = 2560;
  json["model_type"] = "llama";
  const auto llama = parse(json);
  EXPECT_FALSE(llama.family.qk_norm);
  EXPECT_FALSE(has_bias(llama, Projection::q));
  EXPECT_EQ(llama.head_dim, 64u);
  EXPECT_EQ(llama.num_kv_heads, 40u);
  EXPECT_EQ(llama.max_position_embeddings, 2048u);
  EXPECT_EQ(llama.sliding_window, 0u);
  json["model_type"] = "mistral";
  EXPECT_EQ(parse(json).num_kv_heads, 8u);
  EXPECT_EQ(parse(json).sliding_window, 4096u);
  json["sliding_window"] = nullptr;
  EXPECT_EQ(parse(json).sliding_window, 0u);
  json["sliding_window"] = 100;
  EXPECT_EQ(parse(json).sliding_window, 100u);
  json["layer_types"] = std::vector<std::string>(36, "sliding_attention");
  EXPECT_NO_THROW(parse(json));
  json.erase("layer_types");
  json["model_type"] = "qwen2";
  json["num_key_value_heads"] = nullptr;
  EXPECT_EQ(parse(json).num_kv_heads, 40u);
  json["num_key_value_heads"] = 8;
  const auto qwen2 = parse(json);
  EXPECT_EQ(qwen2.sliding_window, 0u);
  EXPECT_FALSE(qwen2.family.qk_norm);
  for (const Projection p : all_projections) EXPECT_EQ(has_bias(qwen2, p), p == Projection::q || p == Projection::k || p == Projection::v);
  json["num_attention_heads"] = 32;
  json["hidden_size"] = 3200;
  expect_error<DataError>([&] { parse(json); }, "config.json", "makes heads of 100");
  EXPECT_EQ(bias_tensor_name(2, Projection::k), "model.layers.2.self_attn.k_proj.bias");
}

TEST(ModelConfig, ReadsHowRopeIsStretched) {
  auto json = qwen3_4b();
  json["rope_scaling"] = Json::parse(R"({"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192})");
  const auto llama3 = parse(json).rope;
  EXPECT_EQ(llama3.kind, RopeConfig::Kind::llama3);
  EXPECT_EQ(llama3.factor, 8);
  EXPECT_EQ(llama3.original_positions, 8192);
  json["rope_scaling"] = Json::parse(R"({"type":"yarn","factor":4.0,"original_max_position_embeddings":32768})");
  const auto yarn = parse(json).rope;
  EXPECT_EQ(yarn.kind, RopeConfig::Kind::yarn);
  EXPECT_NEAR(yarn.attention_factor, 1.1386294361119891, 1e-12);
  json["rope_scaling"]["factor"] = 16.0, json["rope_scaling"]["mscale"] = 1.0, json["rope_scaling"]["mscale_all_dim"] = 0.5;
  EXPECT_NEAR(parse(json).rope.attention_factor, 1.121751143713058, 1e-12);
  json.erase("rope_scaling");
  json["rope_parameters"] = Json::parse(R"({"rope_type":"linear","factor":2.0,"rope_theta":5000.0})");
  EXPECT_EQ(parse(json).rope.kind, RopeConfig::Kind::linear);
  EXPECT_EQ(parse(json).rope.theta, 5000.0f);
  json["rope_scaling"] = Json::object();
  EXPECT_EQ(parse(json).rope.kind, RopeConfig::Kind::linear);
  json["rope_scaling"] = Json::parse(R"({"rope_type":"linear","factor":2.0})");
  EXPECT_EQ(parse(json).rope.theta, 5000.0f);
  json["rope_scaling"]["factor"] = 4.0;
  expect_error<DataError>([&] { parse(json); }, "\"rope_scaling\" and \"rope_parameters\" differ");
  json.erase("rope_scaling");
  json["rope_parameters"] = Json::parse(R"({"rope_type":"yarn","factor":2.0,"rope_theta":1.0})");
  expect_error<DataError>([&] { parse(json); }, "rope_theta above 1; found 1");
}

TEST(ModelConfig, TakesTheGenerationConfigsWord) {
  const auto json = qwen3_4b();
  const auto generation = Json::parse(R"({"do_sample": true, "eos_token_id": [151645, 151643], "temperature": 0.6,
      "top_k": 20, "top_p": 0.95})");
  const JsonObject object(generation, "generation_config.json");
  const auto config = parse_model_config(JsonObject(json, "config.json"), &object);
  EXPECT_EQ(config.eos_token_ids, (std::vector<std::uint32_t>{151645, 151643}));
  EXPECT_TRUE(config.generation.do_sample);
  EXPECT_EQ(config.generation.temperature, 0.6f);
  EXPECT_EQ(config.generation.top_k, 20);
  EXPECT_EQ(config.generation.top_p, 0.95f);
}

TEST(ModelConfig, ReadsHowWeightsInEightBitsAreScaled) {
  const auto blocks = [](const char* quantization) {
    auto json = qwen3_4b();
    json["quantization_config"] = Json::parse(quantization);
    const auto config = parse(json);
    return config.fp8 ? std::pair(config.fp8->rows, config.fp8->columns) : std::pair(0u, 0u);
  };
  EXPECT_EQ(blocks("null"), std::pair(0u, 0u));
  EXPECT_EQ(blocks(R"({"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"fp4"})"), std::pair(0u, 0u));
  EXPECT_EQ(blocks(R"({"quant_method":"fp8","fmt":"e4m3","activation_scheme":"dynamic","weight_block_size":[64,32]})"), std::pair(64u, 32u));
  EXPECT_EQ(blocks(R"({"quant_method":"fp8","activation_scheme":"static"})"), std::pair(128u, 128u));
  EXPECT_EQ(blocks(R"({"quant_method":"fbgemm_fp8"})"), std::pair(128u, 128u));
  const char* group = R"({"quant_method":"compressed-tensors","format":"float-quantized","config_groups":{"group_0":{"targets":["Linear"],
      "weights":{"num_bits":8,"type":"float","strategy":"block","block_structure":[128,64]}}}})";
  EXPECT_EQ(blocks(group), std::pair(128u, 64u));
}

TEST(ModelConfig, RefusesWhatItCannotCompute) {
  struct Case {
    const char* key;
    const char* value;
    const char* part;
  };
  for (const auto& [key, value, part] : std::initializer_list<Case>{
           {"model_type", "\"gemma\"", "one of \"qwen3\", \"qwen2\", \"llama\", \"mistral\", \"smollm3\", \"qwen3_moe\", the families that are supported; found \"gemma\""},
           {"model_type", "null", "absent"},
           {"hidden_act", "\"gelu\"", "\"silu\"; found \"gelu\""},
           {"attention_bias", "true", "must be false"},
           {"partial_rotary_factor", "0.5", "must be 1"},
           {"quantization_config", "{}", "\"quant_method\" must be \"bitsandbytes\" (4 bits), \"fp8\", \"fbgemm_fp8\" or"},
           {"quantization_config", R"({"quant_method":"gptq","bits":4})", "the kinds that are read; found \"gptq\""},
           {"quantization_config", R"({"quant_method":"bitsandbytes","load_in_8bit":true})", "\"load_in_4bit\" must be true"},
           {"quantization_config", R"({"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"int4"})", "\"nf4\" or \"fp4\"; found \"int4\""},
           {"quantization_config", R"({"quant_method":"fp8","weight_block_size":[128]})", "two integers"},
           {"quantization_config", R"({"quant_method":"fp8","weight_block_size":[0,128]})", "an integer from 1"},
           {"quantization_config", R"({"quant_method":"compressed-tensors"})", "\"config_groups\" must be an object"},
           {"quantization_config", R"({"quant_method":"compressed-tensors","config_groups":{"g":{"weights":null}}})", "describes \"weights\""},
           {"quantization_config", R"({"quant_method":"compressed-tensors","config_groups":{"g":{"weights":{"type":"int","num_bits":8}}}})", "\"type\" must be \"float\""},
           {"quantization_config", R"({"quant_method":"compressed-tensors","config_groups":{"g":{"weights":{"type":"float","num_bits":4}}}})", "\"num_bits\" must be 8"},
           {"rope_scaling", R"({"rope_type":"longrope","factor":4.0})", "the kinds of RoPE that are supported; found \"longrope\""},
           {"rope_scaling", R"({"type":"linear"})", "factor"},
           {"rope_scaling", R"({"rope_type":"llama3","factor":8.0,"low_freq_factor":4.0,"high_freq_factor":4.0})", "above low_freq_factor"},
           {"rope_parameters", R"({"full_attention":{"rope_theta":1.0}})", "by kind of layer"},
           {"rope_parameters", R"({"rope_theta":0.5})", "\"rope_theta\" must be a number from 1"},
           {"layer_types", R"(["full_attention"])", "a list of 36"},
           {"hidden_size", "0", "an integer from 1"},
           {"hidden_size", "-2560", "found -2560"},
           {"hidden_size", "4294969856", "found 4294969856"},
           {"hidden_size", "\"2560\"", "found \"2560\""},
           {"num_hidden_layers", "null", "absent"},
           {"head_dim", "100", "a multiple of 16 from 16 to 256; found 100"},
           {"head_dim", "512", "a multiple of 16 from 16 to 256; found 512"},
           {"num_key_value_heads", "5", "a divisor of num_attention_heads (32); found 5"},
           {"rms_norm_eps", "-1", "a number from"},
           {"rope_theta", "\"big\"", "found \"big\""},
           {"eos_token_id", "151936", "holds 151936, but the vocabulary has 151936"},
           {"eos_token_id", "[-1]", "an integer from 0"},
           {"tie_word_embeddings", "1", "true or false"},
       }) {
    auto json = qwen3_4b();
    json[key] = Json::parse(value);
    expect_error<DataError>([&] { parse(json); }, "config.json", part);
  }
  auto json = qwen3_4b();
  json["layer_types"] = std::vector<std::string>(36, "full_attention");
  EXPECT_NO_THROW(parse(json));
  json["layer_types"][35] = "sliding_attention";
  expect_error<DataError>([&] { parse(json); }, "found \"sliding_attention\"");
}

TEST(ModelConfig, SaysThatTheFolderIsNoModel) {
  const test::TemporaryFolder folder;
  expect_error<DataError>([&] { read_model_config(folder.path()); }, "no config.json");
  folder.write("config.json", "[]");
  expect_error<DataError>([&] { read_model_config(folder.path()); }, "config.json", "object is expected");
}

TEST(Projections, HaveTheNamesAndSizesOfTheCheckpoint) {
  const auto config = parse(qwen3_4b());
  EXPECT_EQ(projection_module_name(3, Projection::down), "model.layers.3.mlp.down_proj");
  EXPECT_EQ(projection_tensor_name(0, Projection::q), "model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(norm_tensor_name(7, Norm::k), "model.layers.7.self_attn.k_norm.weight");
  for (const Projection p : all_projections) EXPECT_EQ(projection_named(name_of(p)), p);
  EXPECT_FALSE(projection_named("lm_head").has_value());
  EXPECT_EQ(projection_dims(config, Projection::q).out, 4096);
  EXPECT_EQ(projection_dims(config, Projection::v).out, 1024);
  EXPECT_EQ(projection_dims(config, Projection::o).in, 4096);
  EXPECT_EQ(projection_dims(config, Projection::down).in, 9728);
  EXPECT_EQ(projection_dims(config, Projection::gate).out, 9728);
}

}  // namespace
}  // namespace nibble::config_test
