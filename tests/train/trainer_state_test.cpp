#include "tests/train/tiny_run.h"

#include <set>

namespace nibble::trainer_state_test {
namespace {

namespace fs = std::filesystem;
using test::TinyRun;

Json state_of(const fs::path& folder) { return read_json_file(folder / "trainer_state.json"); }

std::set<std::string> keys(const Json& object) {
  std::set<std::string> names;
  for (const auto& [name, value] : object.items()) names.insert(name);
  return names;
}

// What scripts that draw runs of transformers' Trainer read.
TEST(TrainerState, HasTheTrainersKeysAndItsHistory) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.run({{"keep-checkpoints", "9"}}).code, 0);
  const std::set<std::string> trainers{
      "best_global_step", "best_metric", "best_model_checkpoint", "epoch", "eval_steps", "global_step", "is_hyper_param_search",
      "is_local_process_zero", "is_world_process_zero", "log_history", "logging_steps", "max_steps", "num_input_tokens_seen",
      "num_train_epochs", "save_steps", "stateful_callbacks", "total_flos", "train_batch_size", "trial_name", "trial_params"};
  const Json state = state_of(tiny.output() / "checkpoint-4");
  std::set<std::string> found = keys(state);
  EXPECT_EQ(found.erase("nibble"), 1u);
  EXPECT_EQ(found, trainers);
  EXPECT_EQ(state["num_train_epochs"], 2);
  EXPECT_EQ(state["eval_steps"], 3);
  EXPECT_EQ(state["save_steps"], 2);
  EXPECT_EQ(state["train_batch_size"], 3);
  // Four steps, and the evaluation after the third.
  const auto lines = test::metrics(tiny.output());
  ASSERT_EQ(state["log_history"].size(), 5u);
  for (std::size_t i = 0; i < 5; ++i) {
    const Json& entry = state["log_history"][i];
    EXPECT_EQ(entry["step"], lines[i]["step"]);
    if (i == 3) {
      EXPECT_EQ(keys(entry), (std::set<std::string>{"epoch", "step", "eval_loss", "eval_mean_token_accuracy", "eval_num_tokens"}));
      EXPECT_EQ(entry["eval_loss"], lines[i]["eval_loss"]);
      EXPECT_EQ(entry["epoch"], lines[2]["epoch"]);
    } else {
      EXPECT_EQ(keys(entry), (std::set<std::string>{"epoch", "step", "loss", "grad_norm", "learning_rate", "num_tokens"}));
      EXPECT_EQ(entry["loss"], lines[i]["loss"]);
      EXPECT_EQ(entry["num_tokens"], lines[i]["tokens"]);
    }
  }
}

TEST(TrainerState, OfTheWholeRunStandsBesideTheAdapter) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.run().code, 0);
  const Json state = state_of(tiny.output());
  EXPECT_EQ(state["global_step"], 8);
  const Json& last = state["log_history"].back();
  EXPECT_EQ(keys(last), (std::set<std::string>{"epoch", "step", "total_flos", "train_loss", "train_runtime", "train_samples_per_second",
                                               "train_steps_per_second"}));
  double sum = 0;
  for (const Json& line : test::metrics(tiny.output())) sum += line.value("loss", 0.0);
  EXPECT_NEAR(last["train_loss"].get<double>(), sum / 8, 1e-9);
  // 24 rows in 8 steps.
  EXPECT_NEAR(last["train_samples_per_second"].get<double>(), 3 * last["train_steps_per_second"].get<double>(), 1e-6);
}

TEST(TrainerState, OfAResumedRunGoesOn) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.run().code, 0);
  const Json whole = state_of(tiny.output() / "checkpoint-8");
  const auto again = tiny.run({{"resume", (tiny.output() / "checkpoint-6").string()}});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(state_of(tiny.output() / "checkpoint-8"), whole);
}

}  // namespace
}  // namespace nibble::trainer_state_test
