#include "nibble/weights/made_up_checkpoint.h"
#include "nibble/weights/peft.h"
#include "tests/train/tiny_run.h"

namespace nibble::experts_test {
namespace {

namespace fs = std::filesystem;
using test::expect_complaint;
using test::TinyRun;

// A small mixture of experts with the tiny model's tokenizer, trained by the program.
class TrainExperts : public testing::Test {
 protected:
  TrainExperts() {
    config_ = {.model_type = "qwen3_moe", .family = *family_named("qwen3_moe"), .hidden_size = 64, .num_layers = 2, .vocab_size = 4096, .num_heads = 4,
               .num_kv_heads = 2, .head_dim = 16, .intermediate_size = 64, .max_position_embeddings = 512, .rms_norm_eps = 1e-6f,
               .tie_word_embeddings = true};
    config_.experts = {.count = 6, .per_token = 2, .intermediate_size = 16, .normalised = true};
    const fs::path model = folder_ / "model";
    fs::create_directory(model);
    write_made_up_checkpoint(model, config_, std::uint64_t{1} << 30);
    for (const char* file : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) {
      fs::copy_file(test::source_path(fs::path("models/tiny-qwen3") / file), model / file);
    }
    tiny_.arguments["model"] = model.string();
    tiny_.arguments["max-steps"] = "4";
    tiny_.arguments["save-every"] = "2";
  }

  test::TemporaryFolder folder_;
  ModelConfig config_;
  TinyRun tiny_;
};

TEST_F(TrainExperts, AdaptAttentionAloneUnlessMoreIsNamed) {
  const auto result = tiny_.run();
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(load_lora_adapter(tiny_.output(), config_).config.target_modules,
            (std::vector{Projection::q, Projection::k, Projection::v, Projection::o}));
}

// Each expert that a token was sent to has learned, and a run that goes on from a checkpoint ends with the same bytes.
TEST_F(TrainExperts, LearnWhereTheyAreNamed) {
  tiny_.arguments["target-modules"] = "all-linear";
  const auto result = tiny_.run();
  ASSERT_EQ(result.code, 0) << result.err;
  const LoraAdapter adapter = load_lora_adapter(tiny_.output(), config_);
  const auto& b = adapter.at(1, Projection::down).b;
  EXPECT_GT(std::count_if(b.begin(), b.end(), [](float value) { return value != 0; }), static_cast<std::ptrdiff_t>(b.size() / 2));
  const std::string bytes = test::slurp(tiny_.output() / "adapter_model.safetensors");
  const auto again = tiny_.run({{"resume", (tiny_.output() / "checkpoint-2").string()}});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_NE(again.err.find("step 3/4"), std::string::npos) << again.err;
  EXPECT_EQ(again.err.find("step 2/4"), std::string::npos) << again.err;
  EXPECT_TRUE(test::slurp(tiny_.output() / "adapter_model.safetensors") == bytes);
}

// Merged onto what NF4 makes of the weights, the model is that of the run; the original weights give another loss.
TEST_F(TrainExperts, AreWeighedBeforeTheyAreMerged) {
  tiny_.arguments["target-modules"] = "all-linear";
  ASSERT_EQ(tiny_.run().code, 0);
  const std::string model = tiny_.arguments["model"], adapter = tiny_.output().string(), rows = tiny_.arguments["valid"];
  const auto merged = test::run_program(NIBBLE_PROGRAM, {"merge", "--model", model, "--adapter", adapter, "--output", (folder_ / "merged").string(), "--dtype", "f32",
                                                        "--valid", rows});
  ASSERT_EQ(merged.code, 0) << merged.err;
  const auto number_behind = [&](const std::string& words) {
    const std::size_t at = merged.out.find(words);
    EXPECT_NE(at, std::string::npos) << merged.out;
    return at == std::string::npos ? 0.0 : std::stod(merged.out.substr(at + words.size()));
  };
  const auto adapted_loss = [&] {
    const std::vector<std::string> arguments = {"eval", "--data", rows, "--json", "--compute", "f32", "--model", model, "--adapter", adapter};
    return parse_json(test::run_program(NIBBLE_PROGRAM, arguments).out, "eval")["eval_loss"].get<double>();
  };
  const double original = number_behind("in f32: "), nf4 = number_behind("original weights, ");
  EXPECT_NEAR(nf4, adapted_loss(), 1e-5);
  EXPECT_GT(std::abs(nf4 - original), 1e-5);
  EXPECT_NEAR(number_behind("which is "), nf4 - original, 1.5e-6);
}

TEST_F(TrainExperts, HaveNoDropout) {
  expect_complaint(tiny_.run({{"target-modules", "q_proj,up_proj"}, {"lora-dropout", "0.1"}}), 2, "--lora-dropout", "experts");
  EXPECT_FALSE(fs::exists(tiny_.output()));
}

}  // namespace
}  // namespace nibble::experts_test
