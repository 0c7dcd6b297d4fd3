#include "tests/train/tiny_run.h"

#include <cmath>
#include <set>

namespace nibble::preference_cli_test {
namespace {

namespace fs = std::filesystem;
using test::Arguments;
using test::expect_complaint;

fs::path some_pairs(const test::TemporaryFolder& folder, const std::string& name, std::size_t count) {
  std::ifstream in(test::source_path("examples/preference/" + name));
  std::string text, line;
  for (std::size_t i = 0; i < count && std::getline(in, line); ++i) text += line + "\n";
  return folder.write("pairs-" + name, text);
}

// The short run over pairs of answers: 6 updates of 4 pairs.
struct PairRun : test::TinyRun {
  explicit PairRun(const std::string& loss) {
    arguments["data"] = some_pairs(folder, "train.jsonl", 12).string();
    arguments["valid"] = some_pairs(folder, "valid.jsonl", 4).string();
    arguments["loss"] = loss;
    arguments["batch-size"] = "4";
    arguments["warmup-steps"] = "1";
  }
};

std::vector<Json> steps_of(const fs::path& output) {
  std::vector<Json> steps;
  for (const Json& record : test::metrics(output)) {
    if (record.contains("loss")) steps.push_back(record);
  }
  return steps;
}

TEST(PreferenceCli, ABadCombinationIsNamed) {
  const PairRun pairs("dpo");
  expect_complaint(pairs.run({{"loss", "sft"}}), 2, "--loss", "preference", "dpo or orpo");
  expect_complaint(pairs.run({{"data", test::some_rows(pairs.folder, "train.jsonl", 2).string()}}), 1, "\"chosen\"");
  expect_complaint(pairs.run({{"format", "messages"}, {"data", test::some_rows(pairs.folder, "train.jsonl", 2).string()}}), 2, "--loss",
                   "messages");
  expect_complaint(pairs.run({{"train-on", "all"}}), 2, "--train-on", "answers alone");
  expect_complaint(pairs.run({{"overflow", "split"}}), 2, "--overflow", "split");
  expect_complaint(pairs.run({{"beta", "0"}}), 2, "--beta", "0");
  expect_complaint(pairs.run({{"focal-gamma", "1"}}), 2, "--focal-gamma", "dpo");
  expect_complaint(pairs.run({{"focal-gamma", "-1"}, {"loss", "sft"}}), 2, "--focal-gamma", "-1");
  EXPECT_FALSE(fs::exists(pairs.output()));
}

TEST(PreferenceCli, MetricsHaveTrlsKeys) {
  for (const std::string loss : {"dpo", "orpo"}) {
    SCOPED_TRACE(loss);
    const PairRun pairs(loss);
    const auto result = pairs.run({{"eval-every", "0"}});
    ASSERT_EQ(result.code, 0) << result.err;
    for (const std::string part : {"margin", "accuracy", "rewards"}) EXPECT_NE(result.err.find(part), result.err.npos) << result.err;
    const auto records = test::metrics(pairs.output());
    for (const std::string name : {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
                                   "logps/rejected", "nll_loss"}) {
      EXPECT_TRUE(records.front().contains(name)) << name;
      EXPECT_TRUE(records.back().contains("eval_" + name)) << name;
    }
    EXPECT_TRUE(records.back().contains("eval_loss"));
    const Json first = records.front();
    const double margin = first["rewards/chosen"].get<double>() - first["rewards/rejected"].get<double>();
    EXPECT_NEAR(first["rewards/margins"].get<double>(), margin, 1e-12);
  }
}

// A new adapter changes nothing, so that policy and reference agree; f32 may be summed in another order in another batch.
TEST(PreferenceCli, DpoBeginsAtLogTwoAndLearnsThePairs) {
  const PairRun pairs("dpo");
  ASSERT_EQ(pairs.run({{"epochs", "6"}}).code, 0);
  const auto steps = steps_of(pairs.output());
  EXPECT_NEAR(steps.front()["loss"].get<double>(), std::log(2.0), 1e-5);
  EXPECT_NEAR(steps.front()["rewards/margins"].get<double>(), 0.0, 1e-4);
  EXPECT_LT(steps.back()["loss"].get<double>(), 0.6);
  EXPECT_GT(steps.back()["rewards/margins"].get<double>(), 0.2);
}

TEST(PreferenceCli, OrpoLowersItsLoss) {
  const PairRun pairs("orpo");
  ASSERT_EQ(pairs.run({{"epochs", "4"}}).code, 0);
  const auto steps = steps_of(pairs.output());
  EXPECT_LT(steps.back()["loss"].get<double>(), 0.8 * steps.front()["loss"].get<double>());
  // The loss holds the likelihood of the chosen answers.
  EXPECT_GT(steps.front()["loss"].get<double>(), steps.front()["nll_loss"].get<double>());
}

// Roundings of sums in another order, which the learning rate of 0.002 lets grow.
TEST(PreferenceCli, AccumulationGivesTheGradientOfOneBatch) {
  for (const std::string loss : {"dpo", "orpo"}) {
    SCOPED_TRACE(loss);
    const PairRun whole(loss), parts(loss);
    ASSERT_EQ(whole.run({{"eval-every", "0"}}).code, 0);
    ASSERT_EQ(parts.run({{"eval-every", "0"}, {"batch-size", "1"}, {"gradient-accumulation", "4"}}).code, 0);
    const auto a = steps_of(whole.output()), b = steps_of(parts.output());
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) {
      EXPECT_NEAR(a[i]["loss"].get<double>() / b[i]["loss"].get<double>(), 1.0, 1e-4) << i;
      EXPECT_NEAR(a[i]["grad_norm"].get<double>() / b[i]["grad_norm"].get<double>(), 1.0, 1e-3) << i;
    }
  }
}

TEST(PreferenceCli, AResumedRunEndsWithTheSameBytes) {
  const Arguments options{{"lora-dropout", "0.1"}, {"packing", ""}, {"max-length", "128"}, {"batch-size", "1"},
                          {"gradient-accumulation", "2"}, {"max-steps", "4"}, {"save-every", "2"}};
  const PairRun whole("dpo"), resumed("dpo");
  ASSERT_EQ(whole.run(options).code, 0);
  Arguments again = options;
  again["resume"] = (whole.output() / "checkpoint-2").string();
  const auto result = resumed.run(again);
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(test::slurp(whole.output() / "checkpoint-4/adapter_model.safetensors") ==
              test::slurp(resumed.output() / "checkpoint-4/adapter_model.safetensors"));
  EXPECT_TRUE(test::slurp(whole.output() / "checkpoint-4/optimizer.safetensors") ==
              test::slurp(resumed.output() / "checkpoint-4/optimizer.safetensors"));
  EXPECT_EQ(steps_of(whole.output()).back()["loss"], steps_of(resumed.output()).back()["loss"]);
  again["beta"] = "0.2";
  expect_complaint(resumed.run(again), 2, "beta");
}

// With --init-adapter the reference is the base all the same.
TEST(PreferenceCli, TheReferenceIsTheBaseAlone) {
  PairRun pairs("dpo");
  pairs.arguments.erase("lora-rank");  // the adapter has its own
  const Arguments with_adapter{{"init-adapter", test::source_path("tests/golden/tiny/adapter_trained").string()}, {"max-steps", "1"}};
  ASSERT_EQ(pairs.run(with_adapter).code, 0);
  const Json first = steps_of(pairs.output()).front();
  // The adapter was trained on answers of this kind, chosen or not.
  EXPECT_GT(first["rewards/chosen"].get<double>(), 1.0);
  EXPECT_GT(first["rewards/rejected"].get<double>(), 0.5);
}

// A trained head is not the reference's, which the embedding still holds; neither when a run goes on with it.
TEST(PreferenceCli, TheReferenceHasTheBasesHead) {
  const Arguments options{{"train-head", ""}, {"max-steps", "3"}, {"save-every", "1"}, {"keep-checkpoints", "3"}};
  const PairRun whole("dpo"), resumed("dpo");
  ASSERT_EQ(whole.run(options).code, 0);
  EXPECT_NEAR(steps_of(whole.output()).front()["loss"].get<double>(), std::log(2.0), 1e-5);
  Arguments again = options;
  again["resume"] = (whole.output() / "checkpoint-2").string();
  ASSERT_EQ(resumed.run(again).code, 0);
  EXPECT_EQ(steps_of(whole.output()).back()["loss"], steps_of(resumed.output()).back()["loss"]);
}

TEST(PreferenceCli, EvalJudgesPairs) {
  const PairRun pairs("dpo");
  const auto eval = [&](std::vector<std::string> more) {
    std::vector<std::string> words = {"eval", "--model", pairs.arguments.at("model"), "--data", pairs.arguments.at("valid"), "--json"};
    words.insert(words.end(), more.begin(), more.end());
    const auto result = test::run_program(NIBBLE_PROGRAM, words);
    EXPECT_EQ(result.code, 0) << result.err;
    return result.code == 0 ? parse_json(result.out, "eval") : Json();
  };
  const Json base = eval({"--loss", "dpo"});
  EXPECT_NEAR(base["eval_loss"].get<double>(), std::log(2.0), 1e-6);
  EXPECT_EQ(base["rewards/margins"], 0.0);
  const std::string adapter = test::source_path("tests/golden/tiny/adapter_trained").string();
  EXPECT_GT(eval({"--loss", "dpo", "--adapter", adapter})["rewards/margins"].get<double>(), 0.0);
  const Json orpo = eval({"--loss", "orpo", "--adapter", adapter});
  EXPECT_GT(orpo["eval_loss"].get<double>(), orpo["nll_loss"].get<double>());
  expect_complaint(test::run_program(NIBBLE_PROGRAM, {"eval", "--model", pairs.arguments.at("model"), "--data",
                                                      pairs.arguments.at("valid")}), 2, "--loss");
}

// The reported loss does not know of the weights, the gradient does.
TEST(FocalCli, GammaWeighsGradientsAlone) {
  const test::TinyRun plain, focal;
  ASSERT_EQ(plain.run({{"max-steps", "2"}}).code, 0);
  ASSERT_EQ(focal.run({{"max-steps", "2"}, {"focal-gamma", "2"}}).code, 0);
  const auto without = steps_of(plain.output()), with = steps_of(focal.output());
  EXPECT_EQ(with[0]["loss"], without[0]["loss"]);
  EXPECT_LT(with[0]["grad_norm"].get<double>(), 0.99 * without[0]["grad_norm"].get<double>());
  EXPECT_FALSE(test::adapter_bytes(plain.output()) == test::adapter_bytes(focal.output()));
}

}  // namespace
}  // namespace nibble::preference_cli_test
