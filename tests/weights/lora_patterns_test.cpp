#include "nibble/base/error.h"
#include "nibble/io/json.h"
#include "nibble/weights/peft.h"
#include "tests/support/files.h"

namespace nibble::lora_patterns_test {
namespace {

using test::expect_error;

// Ranks, alphas and layers that differ by module.
class LoraPatterns : public testing::Test {
 protected:
  // A config of rank 8 with `value` for `key`, in the order in which it stands there.
  LoraConfig read(const std::string& key, const std::string& value) {
    auto json = nlohmann::ordered_json(read_json_file(test::source_path("tests/golden/tiny/adapter_trained/adapter_config.json")));
    json[key] = nlohmann::ordered_json::parse(value);
    folder_.write("adapter_config.json", json.dump());
    return read_lora_config(folder_.path());
  }

  test::TemporaryFolder folder_;
};

// What PEFT's get_pattern_key makes of such keys (of the adapter that tests/golden/patterns/make.py made).
TEST_F(LoraPatterns, GiveRankAndScalingOfEachModule) {
  const auto config = read_lora_config(test::source_path("tests/golden/patterns/adapter_nonzero"));
  const auto modules = modules_of(config, 4);
  const auto expect = [&](std::uint32_t layer, Projection p, std::uint32_t rank, double scaling) {
    const LoraModule& module = modules[layer][static_cast<std::size_t>(p)];
    EXPECT_EQ(module.rank, rank) << layer << " " << name_of(p);
    EXPECT_DOUBLE_EQ(module.scaling, scaling) << layer << " " << name_of(p);
  };
  for (std::uint32_t layer = 0; layer < 4; ++layer) {
    const bool adapted = layer == 0 || layer == 2;
    expect(layer, Projection::q, adapted ? 3 : 0, !adapted ? 0 : layer == 2 ? 1.0 / 3 : 3.0 / 3);
    expect(layer, Projection::v, !adapted ? 0 : layer == 2 ? 1 : 2, !adapted ? 0 : layer == 2 ? 3.0 : 1.5);
    expect(layer, Projection::up, adapted ? 2 : 0, adapted ? 2.75 : 0);
    expect(layer, Projection::k, 0, 0);
  }
  EXPECT_EQ(largest_rank(modules), 3u);
  EXPECT_FALSE(config.is_uniform());
  EXPECT_EQ(ranks_text(config), "1 to 3");
}

// The first key of the file that matches counts; a plain key is a pattern too.
TEST_F(LoraPatterns, AreTriedInTheirOrder) {
  const auto ranks_of = [&](const std::string& pattern) {
    const auto modules = modules_of(read("rank_pattern", pattern), 4);
    std::vector<std::uint32_t> ranks;
    for (const auto& layer : modules) ranks.push_back(layer[static_cast<std::size_t>(Projection::q)].rank);
    return ranks;
  };
  using Ranks = std::vector<std::uint32_t>;
  EXPECT_EQ(ranks_of(R"({"q_proj": 2})"), (Ranks{2, 2, 2, 2}));
  EXPECT_EQ(ranks_of(R"({"proj": 2, "_proj": 2, "model.layers.1": 2, "layers.1.self_attn.q_pro": 2})"), (Ranks{8, 8, 8, 8}));
  EXPECT_EQ(ranks_of(R"({"model.layers.1.self_attn.q_proj": 2})"), (Ranks{8, 2, 8, 8}));
  EXPECT_EQ(ranks_of(R"({"self_attn.q.proj": 3})"), (Ranks{3, 3, 3, 3}));
  EXPECT_EQ(ranks_of(R"({"layers\\.[12]\\..*": 4})"), (Ranks{8, 4, 4, 8}));
  EXPECT_EQ(ranks_of(R"({"^model.layers.3.*": 5, "(k|q)_proj": 6})"), (Ranks{6, 6, 6, 5}));
  EXPECT_EQ(ranks_of(R"({"^layers.3.*": 5})"), (Ranks{8, 8, 8, 8}));
  expect_error<DataError>([&] { ranks_of(R"({"(q_proj": 5})"); }, "(q_proj");
  expect_error<DataError>([&] { ranks_of(R"({"q_proj": 0})"); }, "q_proj", "from 1");
  expect_error<DataError>([&] { modules_of(read("layers_to_transform", "[1, 4]"), 4); }, "Layer 4", "has 4");
  EXPECT_EQ(read("layers_to_transform", "3").layers_to_transform, Ranks{3});
}

TEST_F(LoraPatterns, ComeBackAsTheyWereSaved) {
  const auto from = test::source_path("tests/golden/patterns/adapter_nonzero");
  const auto adapter = load_lora_adapter(from, read_model_config(test::tiny));
  EXPECT_EQ(adapter.parameter_count(), 2u * 3 * (256 + 384) + (2 + 1) * (256 + 128) + 2u * 2 * (256 + 768));
  save_lora_adapter(folder_.path(), adapter);
  EXPECT_TRUE(test::slurp(folder_ / "adapter_model.safetensors") == test::slurp(from / "adapter_model.safetensors"));
  const auto ours = read_json_file(folder_ / "adapter_config.json"), theirs = read_json_file(from / "adapter_config.json");
  for (const char* key : {"rank_pattern", "alpha_pattern", "layers_to_transform", "r", "lora_alpha"}) EXPECT_EQ(ours[key], theirs[key]) << key;
}

// JSON is written in the order of names, in which another pattern would be the first to match.
TEST_F(LoraPatterns, KeepWhatHoldsWhereTheirOrderCounts) {
  const auto adapter = make_lora_adapter(read_model_config(test::tiny), {.rank = 2,
                                                  .target_modules = {Projection::q, Projection::k},
                                                  .rank_pattern = {{"q_proj", 3}, {"layers.1.*", 5}},
                                                  .alpha_pattern = {{"self_attn.q_proj", 7.5}, {".*", 4}},
                                                  .layers_to_transform = {1, 3}});
  save_lora_adapter(folder_.path(), adapter);
  const auto back = load_lora_adapter(folder_.path(), read_model_config(test::tiny));
  for (std::uint32_t layer = 0; layer < 4; ++layer) {
    for (const Projection p : all_projections) {
      const LoraModule before = adapter.modules()[layer][static_cast<std::size_t>(p)], after = back.modules()[layer][static_cast<std::size_t>(p)];
      EXPECT_EQ(after.rank, before.rank);
      EXPECT_DOUBLE_EQ(after.scaling, before.scaling);
      EXPECT_EQ(back.at(layer, p).a.size(), adapter.at(layer, p).a.size());
    }
  }
  EXPECT_EQ(back.modules()[1][0].rank, 3u);
  EXPECT_EQ(back.modules()[1][1].rank, 5u);
  EXPECT_EQ(back.modules()[3][0].scaling, 2.5);
}

// Modules that a config leaves, by their layers' and projections' first letters.
std::string left(const LoraConfig& config) {
  std::string text;
  const auto modules = modules_of(config, 4);
  for (std::uint32_t layer = 0; layer < 4; ++layer) {
    for (const Projection p : all_projections) {
      if (modules[layer][static_cast<std::size_t>(p)].used()) text += fmt::format("{}{} ", layer, name_of(p).front());
    }
  }
  return text;
}

// re.fullmatch of a module's whole name.
TEST_F(LoraPatterns, NameTargetsWhole) {
  const auto read_with_layers = [&](const std::string& pattern) { return read("target_modules", write_json_line(pattern)); };
  EXPECT_EQ(left(read_with_layers(R"(.*layers\.[13]\..*\.(q|v)_proj)")), "1q 1v 3q 3v ");
  EXPECT_EQ(left(read_with_layers("model.layers.2.mlp.(up|down)_proj|model.layers.0.self_attn.o_proj")), "0o 2u 2d ");
  EXPECT_EQ(left(read_with_layers(R"((?:.*?(?:self_attn|attention).*?(?:k_proj)).*?)")), "0k 1k 2k 3k ");  // as Unsloth writes them
  for (const char* none : {"q_proj", "layers.0.self_attn.q_proj", "model.layers.4.*", ".*q_pro"}) {
    expect_error<DataError>([&] { left(read_with_layers(none)); }, "target_modules", "model.layers.0.self_attn.q_proj");
  }
  expect_error<DataError>([&] { left(read_with_layers(".*")); }, "lm_head", "cannot be adapted");
  expect_error<DataError>([&] { left(read_with_layers("(")); }, "target_modules");
  const auto json = nlohmann::json{{"target_modules", ".*q_proj"}, {"layers_to_transform", {1}}};
  auto all = read_json_file(test::source_path("tests/golden/tiny/adapter_trained/adapter_config.json"));
  all.update(json);
  folder_.write("adapter_config.json", all.dump());
  expect_error<DataError>([&] { read_lora_config(folder_.path()); }, "layers_to_transform", "is a pattern");
}

TEST_F(LoraPatterns, ExcludeModules) {
  EXPECT_EQ(left(read("exclude_modules", R"(["mlp.up_proj", "self_attn.q_proj", "v_proj", "layers.0", "roj", "model.layers.3.self_attn.k_proj"])")),
            "0k 0o 0g 0d 1k 1o 1g 1d 2k 2o 2g 2d 3o 3g 3d ");
  EXPECT_EQ(left(read("exclude_modules", R"(".*(mlp|layers.[0-2]).*")")), "3q 3k 3v 3o ");
  EXPECT_EQ(left(read("exclude_modules", R"("mlp.*")")).size(), 7u * 4 * 3);
  expect_error<DataError>([&] { left(read("exclude_modules", R"(".*")")); }, "exclude_modules");
  expect_error<DataError>([&] { read("exclude_modules", "3"); }, "exclude_modules");
}

TEST_F(LoraPatterns, OfTargetsAndExclusionsAreSaved) {
  for (const bool by_name : {false, true}) {
    LoraConfig config{.rank = 2, .target_pattern = ".*_proj", .exclude_pattern = by_name ? "" : ".*[kv]_proj"};
    if (by_name) config.exclude_modules = {"k_proj", "v_proj"};
    save_lora_adapter(folder_.path(), make_lora_adapter(read_model_config(test::source_path("models/tiny-qwen3")), config));
    const LoraAdapter back = load_lora_adapter(folder_.path(), read_model_config(test::source_path("models/tiny-qwen3")));
    EXPECT_EQ(left(back.config), left(config));
    EXPECT_EQ(back.parameter_count(), make_lora_adapter(read_model_config(test::source_path("models/tiny-qwen3")), config).parameter_count());
    EXPECT_EQ(read_json_file(folder_ / "adapter_config.json")["target_modules"], ".*_proj");
  }
}

}  // namespace
}  // namespace nibble::lora_patterns_test
