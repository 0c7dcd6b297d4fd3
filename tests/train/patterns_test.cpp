#include "nibble/io/safetensors.h"
#include "nibble/weights/peft.h"
#include "tests/train/tiny_run.h"

namespace nibble::patterns_test {
namespace {

namespace fs = std::filesystem;
using test::TinyRun;

// Adapters whose ranks and alphas differ by module, trained by the program.
class TrainPatterns : public testing::Test {
 protected:
  TrainPatterns() {
    tiny_.arguments["target-modules"] = "q_proj,v_proj,down_proj";
    tiny_.arguments["rank-pattern"] = "layers.[23].mlp.down_proj=7";
    tiny_.arguments["alpha-pattern"] = "q_proj=5";
    tiny_.arguments["layers-to-transform"] = "0,2-3";
    tiny_.arguments["max-steps"] = "4";
    tiny_.arguments["weight-decay"] = "0.1";
  }

  static LoraAdapter load(const fs::path& folder) {
    return load_lora_adapter(folder, read_model_config(test::source_path("models/tiny-qwen3")));
  }

  TinyRun tiny_;
};

TEST_F(TrainPatterns, EachModuleHasItsRankAndAllAreTrained) {
  const auto result = tiny_.run();
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("rank 4 to 7, alpha 32, or by 1 patterns, q_proj, v_proj, down_proj of layers 0, 2, 3"), std::string::npos) << result.err;
  const LoraAdapter adapter = load(tiny_.output());
  const LoraModules modules = adapter.modules();
  for (std::uint32_t layer = 0; layer < 4; ++layer) {
    for (const Projection p : all_projections) {
      const bool adapted = layer != 1 && (p == Projection::q || p == Projection::v || p == Projection::down);
      const std::uint32_t rank = !adapted ? 0 : p == Projection::down && layer > 1 ? 7 : 4;
      const LoraModule& module = modules[layer][static_cast<std::size_t>(p)];
      EXPECT_EQ(module.rank, rank);
      if (!adapted) continue;
      EXPECT_DOUBLE_EQ(module.scaling, (p == Projection::q ? 5.0 : 32.0) / rank);
      const auto& b = adapter.at(layer, p).b;
      EXPECT_TRUE(std::none_of(b.begin(), b.end(), [](float value) { return value == 0; })) << "every column of B has learned";
    }
  }
}

// Moments lie in checkpoints as the device has them: what pads a rank is zero after updates with decay too.
TEST_F(TrainPatterns, WhatPadsARankStaysZero) {
  tiny_.arguments["save-every"] = "4";
  const auto result = tiny_.run();
  ASSERT_EQ(result.code, 0) << result.err;
  const SafetensorsFile moments(tiny_.output() / "checkpoint-4" / "optimizer.safetensors");
  for (const char* kind : {"exp_avg.", "exp_avg_sq."}) {
    const auto a = moments.read_as_f32(kind + peft_tensor_name(2, Projection::q, LoraMatrix::a));
    const auto b = moments.read_as_f32(kind + peft_tensor_name(2, Projection::q, LoraMatrix::b));
    ASSERT_EQ(a.size(), 7u * 256);
    ASSERT_EQ(b.size(), 7u * 384);
    for (std::size_t i = 0; i < a.size(); ++i) ASSERT_EQ(a[i] == 0, i / 256 >= 4) << i;
    for (std::size_t i = 0; i < b.size(); ++i) ASSERT_EQ(b[i] == 0, i % 7 >= 4) << i;
  }
}

TEST_F(TrainPatterns, AreResumedToTheSameBytes) {
  ASSERT_EQ(tiny_.run().code, 0);
  const std::string whole = test::adapter_bytes(tiny_.output());
  fs::remove_all(tiny_.output() / "checkpoint-4");
  const auto resumed = tiny_.run({{"resume", "auto"}});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_TRUE(test::adapter_bytes(tiny_.output()) == whole);
  test::expect_complaint(tiny_.run({{"resume", "auto"}, {"alpha-pattern", "q_proj=6"}}), 2, "alpha_pattern");
  test::expect_complaint(tiny_.run({{"resume", "auto"}, {"layers-to-transform", "0,2"}}), 2, "layers_to_transform");
}

// The same ranks and scalings, said in another way.
TEST_F(TrainPatterns, ThatSayTheSameEverywhereChangeNothing) {
  TinyRun plain;
  plain.arguments["max-steps"] = "3";
  ASSERT_EQ(plain.run().code, 0);
  const std::string expected = test::adapter_bytes(plain.output());
  const auto result = plain.run({{"lora-rank", "9"}, {"lora-alpha", "1"}, {"rank-pattern", ".*=4"}, {"alpha-pattern", ".*=32"},
                                 {"layers-to-transform", "0-3"}, {"output", (plain.folder / "other").string()}});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(test::adapter_bytes(plain.folder / "other") == expected);
}

// One goes on from an adapter with patterns, whose ranks hold.
TEST_F(TrainPatterns, OfAnAdapterGoOn) {
  TinyRun from;
  from.arguments.erase("lora-rank");
  from.arguments["max-steps"] = "2";  // the first one warms up
  from.arguments["init-adapter"] = test::source_path("tests/golden/patterns/adapter_nonzero").string();
  const auto result = from.run();
  ASSERT_EQ(result.code, 0) << result.err;
  const LoraAdapter before = load(from.arguments["init-adapter"]), after = load(from.output());
  EXPECT_EQ(after.parameter_count(), before.parameter_count());
  EXPECT_NE(after.at(2, Projection::v).b, before.at(2, Projection::v).b);
  EXPECT_EQ(after.config.alpha_pattern, before.config.alpha_pattern);
}

TEST_F(TrainPatterns, BadOnesAreNamed) {
  test::expect_complaint(tiny_.run({{"rank-pattern", "q_proj"}}), 2, "--rank-pattern", "NAME=NUMBER");
  test::expect_complaint(tiny_.run({{"rank-pattern", "q_proj=300"}}), 2, "--rank-pattern", "300", "256");
  test::expect_complaint(tiny_.run({{"rank-pattern", "down_pro=3"}}), 2, "--rank-pattern", "\"down_pro\"", "layers.0.self_attn.q_proj");
  test::expect_complaint(tiny_.run({{"alpha-pattern", "layers.4.*=3"}}), 2, "--alpha-pattern", "\"layers.4.*\"");
  test::expect_complaint(tiny_.run({{"alpha-pattern", "q_proj=x"}}), 2, "--alpha-pattern", "NAME=NUMBER");
  test::expect_complaint(tiny_.run({{"rank-pattern", "(q=3"}}), 2, "--rank-pattern or --alpha-pattern", "(q");
  test::expect_complaint(tiny_.run({{"layers-to-transform", "3-1"}}), 2, "--layers-to-transform", "3-1");
  test::expect_complaint(tiny_.run({{"layers-to-transform", "0,4"}}), 2, "--layers-to-transform", "Layer 4", "has 4");
  EXPECT_FALSE(fs::exists(tiny_.output()));
}

}  // namespace
}  // namespace nibble::patterns_test
