#include "nibble/io/safetensors.h"
#include "tests/support/disk.h"
#include "tests/train/tiny_run.h"

#include <algorithm>
#include <set>

namespace nibble::train_cli_test {
namespace {

namespace fs = std::filesystem;
using test::Arguments;
using test::expect_complaint;
using test::TinyRun;

const std::string good_row = R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]})";

std::set<std::string> keys(const Json& object) {
  std::set<std::string> names;
  for (const auto& [name, value] : object.items()) names.insert(name);
  return names;
}

// The command line's parser complains in its own form, with a pointer to --help behind.
void expect_usage(const test::ProgramResult& result, const std::string& part) {
  EXPECT_EQ(result.code, 2) << result.err;
  EXPECT_NE((result.out + result.err).find(part), std::string::npos) << part << " is not in: " << result.out << result.err;
}

TEST(TrainCli, BadOptionsAreNamed) {
  const TinyRun tiny;
  expect_usage(test::run_program(NIBBLE_PROGRAM, {"train", "--data", "x", "--output", "y"}), "--model is required");
  expect_usage(tiny.run({{"learning-rat", "1"}}), "--learning-rat");
  expect_usage(tiny.run({{"lora-rank", "0"}}), "--lora-rank");
  expect_usage(tiny.run({{"batch-size", "-1"}}), "--batch-size");
  expect_usage(tiny.run({{"lr-scheduler", "step"}}), "--lr-scheduler");
  expect_usage(tiny.run({{"epochs", "many"}}), "--epochs");
  expect_complaint(tiny.run({{"target-modules", "q_proj,qq_proj"}}), 2, "--target-modules", "\"qq_proj\"", "all-linear");
  expect_complaint(tiny.run({{"epochs", "0"}}), 2, "--epochs", "0");
  expect_complaint(tiny.run({{"learning-rate", "-1"}}), 2, "--learning-rate", "-1");
  expect_complaint(tiny.run({{"lora-dropout", "1"}}), 2, "--lora-dropout", "1");
  expect_complaint(tiny.run({{"max-steps", "-1"}}), 2, "--max-steps", "-1");
  expect_complaint(tiny.run({{"weight-decay", "nan"}}), 2, "--weight-decay", "nan");
  expect_complaint(tiny.run({{"lora-alpha", "inf"}}), 2, "--lora-alpha", "inf");
  expect_complaint(tiny.run({{"valid-fraction", "0.5"}}), 2, "--valid-fraction", "--valid already");
  expect_complaint(tiny.run({{"format", "xml"}}), 2, "xml");
  expect_complaint(tiny.run({{"gpu", "no such adapter"}}), 2, "no such adapter");
  const std::string adapter = test::source_path("tests/golden/tiny/adapter_nonzero").string();
  expect_complaint(tiny.run({{"adapter", adapter}}), 2, "--gpu", adapter, "--init-adapter");
  const std::string start = tiny.folder / "start";
  fs::copy(adapter, start);
  expect_complaint(tiny.run({{"init-adapter", start}, {"output", start}, {"lora-rank", "8"}}), 2, "--output", start, "which is read");
  EXPECT_FALSE(fs::exists(tiny.output()));
}

TEST(TrainCli, AValidFractionNeedsSense) {
  TinyRun tiny;
  tiny.arguments.erase("valid");
  expect_complaint(tiny.run({{"valid-fraction", "2"}}), 2, "--valid-fraction", "2", "[0, 1)");
  expect_complaint(tiny.run({{"valid-fraction", "0.001"}}), 2, "--valid-fraction", "12");
  expect_complaint(tiny.run({{"early-stopping", "2"}}), 2, "--early-stopping", "--valid");
  EXPECT_FALSE(fs::exists(tiny.output()));
}

TEST(TrainCli, MissingFilesAreNamed) {
  const TinyRun tiny;
  expect_complaint(tiny.run({{"model", "/nowhere/model"}}), 1, "/nowhere/model");
  expect_complaint(tiny.run({{"data", "/nowhere/rows.jsonl"}}), 1, "/nowhere/rows.jsonl");
  expect_complaint(tiny.run({{"valid", "/nowhere/rows.jsonl"}}), 1, "/nowhere/rows.jsonl");
  expect_complaint(tiny.run({{"init-adapter", "/nowhere/adapter"}}), 1, "/nowhere/adapter");
  // A folder cannot be made under a file; this holds for root too.
  const fs::path file = tiny.folder.write("file", "");
  expect_complaint(tiny.run({{"output", (file / "run").string()}}), 1, file.string());
  EXPECT_FALSE(fs::exists(tiny.output()));
}

// What is said of the adapter that the run begins with has to be what it is, in whichever words.
TEST(TrainCli, AnAdapterStaysWhatItIs) {
  TinyRun tiny;
  const std::string adapter = test::source_path("tests/golden/tiny/adapter_trained").string();  // rank 8, alpha 16, all projections
  tiny.arguments["init-adapter"] = adapter;
  expect_complaint(tiny.run(), 2, "[--lora-rank]", "is 8", "4 was given");
  tiny.arguments.erase("lora-rank");
  tiny.arguments["dry-run"] = "";
  expect_complaint(tiny.run({{"lora-alpha", "8"}}), 2, "[--lora-alpha]", "is 16", "8 was given");
  expect_complaint(tiny.run({{"use-rslora", ""}}), 2, "[--use-rslora]", "is alpha / r ", "alpha / sqrt(r) was given");
  expect_complaint(tiny.run({{"use-dora", ""}}), 2, "[--use-dora]", "is LoRA", "DoRA was given");
  expect_complaint(tiny.run({{"target-modules", "q_proj,v_proj"}}), 2, "[--target-modules]", "gate_proj", "q_proj,v_proj was given");
  expect_complaint(tiny.run({{"target-modules", "model.layers.[01].mlp.*"}}), 2, "[--target-modules]", "model.layers.[01].mlp.* was given");
  expect_complaint(tiny.run({{"layers-to-transform", "0,2"}}), 2, "[--layers-to-transform]", "is all", "0,2 was given");
  expect_complaint(tiny.run({{"rank-pattern", "q_proj=4"}}), 2, "[--rank-pattern]", "is none", "q_proj=4 was given");
  expect_complaint(tiny.run({{"alpha-pattern", "q_proj=4"}}), 2, "[--alpha-pattern]", "is none", "q_proj=4 was given");
  expect_complaint(tiny.run({{"init-lora-weights", "gaussian"}}), 2, "[--init-lora-weights]", "\"gaussian\"", "--init-adapter");
  expect_complaint(tiny.run({{"config", tiny.folder.write("c.toml", "lora-rank = 12\n").string()}}), 2, "[--lora-rank]", "is 8", "12 was given");
  EXPECT_FALSE(fs::exists(tiny.output()));
  for (const Arguments& equal : {Arguments{}, {{"lora-rank", "8"}, {"lora-alpha", "16"}}, {{"target-modules", "all-linear"}},
                                 {{"target-modules", "auto"}}, {{"layers-to-transform", "0-3"}}, {{"rank-pattern", "q_proj=8"}},
                                 {{"init-lora-weights", "true"}}, {{"lora-dropout", "0.1"}}}) {
    const auto result = tiny.run(equal);
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_NE(result.err.find("rank 8, alpha 16, all linear layers"), result.err.npos) << result.err;
  }
}

// Its values are the adapter's own, so config.toml says none.
TEST(TrainCli, TheConfigRepeatsARunThatBeginsWithAnAdapter) {
  TinyRun tiny;
  tiny.arguments["init-adapter"] = test::source_path("tests/golden/tiny/adapter_trained").string();
  tiny.arguments["max-steps"] = "2";
  tiny.arguments.erase("lora-rank");
  ASSERT_EQ(tiny.run({{"lora-rank", "8"}}).code, 0);
  const std::string config = (tiny.output() / "config.toml").string();
  EXPECT_EQ(test::slurp(config).find("lora-alpha"), std::string::npos) << test::slurp(config);
  const fs::path again = tiny.folder / "again";
  const auto result = test::run_program(NIBBLE_PROGRAM, {"train", "--config", config, "--output", again.string()});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(test::adapter_bytes(tiny.output()) == test::adapter_bytes(again));
}

TEST(TrainCli, BadRowsAreNamedByTheirLine) {
  const TinyRun tiny;
  const auto run_with = [&](const std::string& bad_row) {
    return tiny.run({{"data", tiny.folder.write("bad.jsonl", good_row + "\n" + good_row + "\n" + bad_row + "\n").string()}});
  };
  expect_complaint(run_with("{\"messages\": ["), 1, "bad.jsonl, line 3");
  expect_complaint(run_with(R"({"messages": [{"role": "wizard", "content": "hi"}, {"role": "assistant", "content": "hello"}]})"), 1,
                   "bad.jsonl, line 3", "wizard");
  expect_complaint(run_with(R"({"messages": [{"role": "user", "content": "hi"}]})"), 1, "bad.jsonl, line 3");
  expect_complaint(tiny.run({{"data", tiny.folder.write("bad.jsonl", "").string()}}), 1, "bad.jsonl");
  expect_complaint(tiny.run({{"max-length", "20"}, {"batch-size", "1"}}), 1, "12", "20", "--overflow", "drop", "cut", "split");
  EXPECT_FALSE(fs::exists(tiny.output()));
}

TEST(TrainCli, ADryRunWritesNothing) {
  const TinyRun tiny;
  const auto result = tiny.run({{"dry-run", ""}});
  EXPECT_EQ(result.code, 0) << result.err;
  for (const std::string part : {"Steps", "Memory", "12 rows", "trainable parameters"}) {
    EXPECT_NE(result.err.find(part), result.err.npos) << part;
  }
  EXPECT_FALSE(fs::exists(tiny.output()));
}

// The classes add up to what stands above them, and what a run needs beside memory is there.
TEST(TrainCli, ADryRunShowsThePlan) {
  const TinyRun tiny;
  const auto result = tiny.run({{"dry-run", ""}, {"vram-limit", "2GiB"}});
  EXPECT_EQ(result.code, 0) << result.err;
  for (const std::string part : {"--vram-limit allows", "frozen weights", "layer inputs", "of 4 layers 4 keep everything", "RAM ", "Disk ",
                                 "Time ", "8 steps"}) {
    EXPECT_NE(result.err.find(part), result.err.npos) << part << " is not in: " << result.err;
  }
  EXPECT_FALSE(fs::exists(tiny.output()));
}

TEST(TrainCli, ALimitThatIsTooSmallIsRefusedBeforeAnythingIsWritten) {
  const TinyRun tiny;
  expect_complaint(tiny.run({{"vram-limit", "1MiB"}}), 2, "--vram-limit", "needs at least", "1048576 bytes");
  expect_complaint(tiny.run({{"vram-limit", "1 MiB"}}), 2, "--vram-limit", "1 MiB", "GiB");
  EXPECT_FALSE(fs::exists(tiny.output()));
}

// Host memory that is too small for streamed layers puts them on a disk, which is said, gone afterwards, and changes nothing.
TEST(TrainCli, ASmallRamLimitTrainsFromADisk) {
  const TinyRun tiny;
  const test::FolderOnDisk disk;
  const test::Arguments streamed{{"residency", "streamed"}, {"stream-dir", disk.path().string()}};
  const auto with = [&](test::Arguments more) {
    more.insert(streamed.begin(), streamed.end());
    return more;
  };
  EXPECT_EQ(tiny.run(with({{"output", (tiny.folder / "ram").string()}})).code, 0);
  const auto dry = tiny.run(with({{"dry-run", ""}, {"ram-limit", "129.5MiB"}}));
  for (const std::string& part : std::vector<std::string>{"of 129.5 MiB that --ram-limit allows", "4 others are streamed from a disk",
                                                          "of the layers on disk 3 at a time", "of streamed layers in " + disk.path().string()}) {
    EXPECT_NE(dry.err.find(part), dry.err.npos) << part << " is not in: " << dry.err;
  }
  const auto trained = tiny.run(with({{"ram-limit", "129.5MiB"}}));
  EXPECT_EQ(trained.code, 0) << trained.err;
  EXPECT_NE(trained.err.find("of streamed layers in " + disk.path().string()), trained.err.npos) << trained.err;
  EXPECT_TRUE(fs::is_empty(disk.path()));
  EXPECT_EQ(test::adapter_bytes(tiny.output()), test::adapter_bytes(tiny.folder / "ram"));
  expect_complaint(tiny.run(with({{"ram-limit", "1MiB"}})), 2, "--ram-limit", "needs at least", "1048576 bytes");
  expect_complaint(tiny.run(with({{"ram-limit", "much"}})), 2, "--ram-limit", "much", "GiB");
  expect_complaint(tiny.run(with({{"ram-limit", "129.5MiB"}, {"stream-memory", "staged"}})), 2, "--ram-limit", "needs at least");
}

// Killed in the midst of a step, it leaves no scratch file.
TEST(TrainCli, AKilledRunLeavesNothingOnTheDisk) {
  const TinyRun tiny;
  const test::FolderOnDisk disk;
  test::RunningProgram program(NIBBLE_PROGRAM, tiny.command({{"residency", "streamed"}, {"stream-memory", "disk"}, {"stream-dir", disk.path().string()},
                                                             {"epochs", "1000"}}));
  for (int i = 0; i < 600 && !fs::exists(tiny.output() / "metrics.jsonl"); ++i) ::usleep(100'000);
  ASSERT_TRUE(program.running());
  EXPECT_EQ(program.wait_after(SIGKILL).signal, SIGKILL);
  EXPECT_TRUE(fs::is_empty(disk.path()));
}

TEST(TrainCli, AFolderInMemoryIsNoDisk) {
  const fs::path memory = test::folder_in_memory();
  if (memory.empty()) GTEST_SKIP() << "No tmpfs is mounted.";
  const std::string folder = (memory / "nibble").string();
  const TinyRun tiny;
  for (const test::Arguments& more : {test::Arguments{}, test::Arguments{{"dry-run", ""}}}) {
    test::Arguments arguments{{"residency", "streamed"}, {"stream-memory", "disk"}, {"stream-dir", folder}};
    arguments.insert(more.begin(), more.end());
    expect_complaint(tiny.run(arguments), 1, folder, "tmpfs", "--stream-dir");
  }
  EXPECT_FALSE(fs::exists(tiny.output()));
}

TEST(TrainCli, ThatAHeadIsUntiedIsSaidAloud) {
  const TinyRun tiny;
  const auto result = tiny.run({{"dry-run", ""}, {"train-head", ""}, {"head-state", "host"}, {"head-moments", "8bit"}});
  EXPECT_EQ(result.code, 0) << result.err;
  for (const std::string part : {"1,048,576 of them in the head", "untied from the embedding", "8 bits", "host memory"}) {
    EXPECT_NE(result.err.find(part), result.err.npos) << part;
  }
  expect_complaint(tiny.run({{"dry-run", ""}, {"head-moments", "8bit"}}), 2, "--train-head");
}

TEST(TrainCli, HowMomentsAreKeptIsInThePlan) {
  const TinyRun tiny;
  const auto result = tiny.run({{"dry-run", ""}, {"lora-state", "host"}, {"lora-moments", "8bit"}});
  EXPECT_EQ(result.code, 0) << result.err;
  for (const std::string part : {"trainable parameters; moments in 8 bits, kept in host memory", "moments in 8 bits, which lie in host memory",
                                 "the adapter's moments "}) {
    EXPECT_NE(result.err.find(part), result.err.npos) << part << " is not in: " << result.err;
  }
  expect_complaint(tiny.run({{"lora-moments", "16bit"}}), 2, "--lora-moments");
  expect_complaint(tiny.run({{"lora-state", "disk"}}), 2, "--lora-state");
}

TEST(TrainCli, ThatScalesAreIn8BitsIsInThePlan) {
  const TinyRun tiny;
  const auto result = tiny.run({{"dry-run", ""}, {"double-quant", ""}});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("scales of NF4 are kept in 8 bits"), result.err.npos) << result.err;
  EXPECT_EQ(tiny.run({{"dry-run", ""}}).err.find("scales of NF4"), std::string::npos);
}

TEST(TrainCli, AnEndlessRunIsPlannedAtOnce) {
  const TinyRun tiny;
  for (const test::Arguments& changes : {test::Arguments{}, test::Arguments{{"packing", ""}}}) {
    test::Arguments endless = changes;
    endless.insert({{"dry-run", ""}, {"max-steps", "1000000000000"}});
    const auto result = tiny.run(endless);
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_NE(result.err.find("1,000,000,000,000"), result.err.npos) << result.err;
  }
}

TEST(TrainCli, MetricsHaveTheirKeys) {
  const TinyRun tiny;
  const auto result = tiny.run();
  ASSERT_EQ(result.code, 0) << result.err;
  std::vector<std::uint64_t> steps, evaluations;
  for (const Json& record : test::metrics(tiny.output())) {
    if (record.contains("eval_loss")) {
      EXPECT_EQ(keys(record), (std::set<std::string>{"step", "eval_loss", "eval_accuracy", "eval_tokens"}));
      evaluations.push_back(record["step"]);
    } else {
      EXPECT_EQ(keys(record), (std::set<std::string>{"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens",
                                                     "tokens_per_second", "memory_bytes"}));
      steps.push_back(record["step"]);
    }
  }
  EXPECT_EQ(steps, (std::vector<std::uint64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(evaluations, (std::vector<std::uint64_t>{3, 6, 8}));  // the last step whatever --eval-every says
}

TEST(TrainCli, TheConfigRepeatsTheRun) {
  TinyRun tiny;
  // A folder that a reader of TOML without quoting and escaping would trip over.
  const fs::path awkward = tiny.folder / "a \"b\" #c, [d] \\e";
  fs::create_directory(awkward);
  fs::copy_file(tiny.arguments["data"], awkward / "rows.jsonl");
  tiny.arguments["data"] = (awkward / "rows.jsonl").string();
  tiny.arguments["target-modules"] = "v_proj,down_proj";
  tiny.arguments["use-rslora"] = "";
  tiny.arguments["shuffle"] = "off";
  ASSERT_EQ(tiny.run().code, 0);
  const std::string config = (tiny.output() / "config.toml").string();
  const fs::path again = tiny.folder / "again";
  const auto result = test::run_program(NIBBLE_PROGRAM, {"train", "--config", config, "--output", again.string()});
  EXPECT_EQ(result.code, 0) << result.err << test::slurp(config);
  EXPECT_TRUE(test::adapter_bytes(tiny.output()) == test::adapter_bytes(again));
  EXPECT_EQ(test::timeless_metrics(tiny.output()), test::timeless_metrics(again));
}

TEST(TrainCli, ARecipeFillsWhatIsNotGiven) {
  TinyRun tiny;
  tiny.arguments["max-steps"] = "2";
  ASSERT_EQ(tiny.run().code, 0);
  const std::string plain = test::adapter_bytes(tiny.output());
  ASSERT_EQ(tiny.run({{"recipe", "original"}, {"adam-beta1", "0.8"}}).code, 0);
  const std::string recipe = test::adapter_bytes(tiny.output()), config = test::slurp(tiny.output() / "config.toml");
  for (const char* line : {"recipe = \"original\"", "adam-beta1 = 0.8\n", "adam-beta2 = 0.95\n", "weight-decay = 0.1\n"}) {
    EXPECT_NE(config.find(line), config.npos) << line << config;
  }
  EXPECT_FALSE(recipe == plain);
  ASSERT_EQ(tiny.run({{"adam-beta1", "0.8"}, {"adam-beta2", "0.95"}, {"adam-epsilon", "1e-8"}, {"weight-decay", "0.1"}}).code, 0);
  EXPECT_TRUE(test::adapter_bytes(tiny.output()) == recipe);
  expect_usage(tiny.run({{"recipe", "other"}}), "original");
}

TEST(TrainCli, NeftuneChangesTheRunAndNotItsEvaluation) {
  TinyRun tiny;
  tiny.arguments["max-steps"] = "2";
  const auto first_loss = [&](const char* alpha, const char* rate) {
    EXPECT_EQ(tiny.run({{"neftune-alpha", alpha}, {"learning-rate", rate}}).code, 0);
    return std::pair(test::metrics(tiny.output()).front()["loss"], test::metrics(tiny.output()).back()["eval_loss"]);
  };
  // Nothing is learned at a rate of 0, so only the noise can make a difference.
  const auto plain = first_loss("0", "0"), noisy = first_loss("5", "0");
  EXPECT_NE(noisy.first, plain.first);
  EXPECT_EQ(noisy.second, plain.second);
}

TEST(TrainCli, TheCommandLineWinsOverTheConfig) {
  const TinyRun tiny;
  const auto with_config = [&](const std::string& text) {
    return tiny.run({{"config", tiny.folder.write("c.toml", text).string()}, {"dry-run", ""}});
  };
  const auto both = with_config("# A comment.\nlora-rank = 64 # of no effect\nlora-alpha = 48\ntarget-modules = ['q_proj', \"k_proj\"]\n");
  EXPECT_EQ(both.code, 0) << both.err;
  EXPECT_NE(both.err.find("rank 4, alpha 48, q_proj, k_proj"), both.err.npos) << both.err;
  expect_usage(with_config("lora-alpha = 3\nlearning = 3\n"), "c.toml:2");
  expect_usage(with_config("lora-alpha\n"), "c.toml:1");
  expect_usage(with_config("lora-alpha = \"3\n"), "c.toml:1");
  expect_usage(with_config("lora-alpha = many\n"), "c.toml:1");
  expect_usage(with_config("warmup-ratio = 3\n"), "--warmup-ratio");
  expect_usage(tiny.run({{"config", "/nowhere.toml"}}), "/nowhere.toml");
}

TEST(TrainCli, ARunThatLiesInTheOutputIsSaidAloud) {
  const TinyRun tiny;
  const std::string words = "has checkpoint-8 of an earlier run";
  const auto first = tiny.run();
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(first.err.find(words), std::string::npos) << first.err;
  const auto again = tiny.run({{"dry-run", ""}}), on = tiny.run({{"dry-run", ""}, {"resume", "auto"}});
  EXPECT_NE(again.err.find(words), std::string::npos) << again.err;
  EXPECT_EQ(on.err.find(words), std::string::npos) << on.err;
}

TEST(TrainCli, StopsEarly) {
  const TinyRun tiny;
  // At a rate of 0 no evaluation after the first is better.
  const auto result = tiny.run({{"learning-rate", "0"}, {"eval-every", "1"}, {"early-stopping", "2"}});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("Stopped early at step 3"), result.err.npos) << result.err;
  EXPECT_EQ(test::metrics(tiny.output()).back()["step"], 3);
  EXPECT_TRUE(fs::exists(tiny.output() / "checkpoint-3"));
  EXPECT_EQ(read_json_file(tiny.output() / "checkpoint-3/trainer_state.json")["best_global_step"], 1);
}

TEST(TrainCli, TheAdapterHasPeftsForm) {
  const TinyRun tiny;
  const auto result = tiny.run({{"lora-rank", "8"}, {"lora-alpha", "16"}, {"max-steps", "1"}});
  ASSERT_EQ(result.code, 0) << result.err;
  const fs::path reference = test::source_path("tests/golden/tiny/adapter_trained");
  const SafetensorsFile ours(tiny.output() / "adapter_model.safetensors"), theirs(reference / "adapter_model.safetensors");
  ASSERT_EQ(ours.tensors().size(), theirs.tensors().size());
  for (const auto& [name, tensor] : theirs.tensors()) {
    const TensorInfo* own = ours.find(name);
    ASSERT_NE(own, nullptr) << name;
    EXPECT_EQ(own->shape, tensor.shape) << name;
    EXPECT_EQ(own->dtype_name, tensor.dtype_name) << name;
  }
  const Json own_config = read_json_file(tiny.output() / "adapter_config.json");
  const Json their_config = read_json_file(reference / "adapter_config.json");
  for (const auto& [name, value] : own_config.items()) {
    ASSERT_TRUE(their_config.contains(name)) << name;
    if (name == "base_model_name_or_path" || name == "target_modules") continue;
    EXPECT_EQ(value, their_config[name]) << name;
  }
  const auto sorted = [](const Json& names) { return std::set<std::string>(names.begin(), names.end()); };
  EXPECT_EQ(sorted(own_config["target_modules"]), sorted(their_config["target_modules"]));
}

TEST(TrainCli, ADivergedRunNamesTheStepAndKeepsTheCheckpoint) {
  const TinyRun tiny;
  const auto result = tiny.run({{"learning-rate", "1e30"}, {"save-every", "1"}, {"warmup-steps", "1"}});
  expect_complaint(result, 4, "Step 3", "row", tiny.arguments.at("data"), "The last checkpoint is", "checkpoint-");
  EXPECT_TRUE(fs::exists(tiny.output() / "checkpoint-1/trainer_state.json"));
  EXPECT_TRUE(fs::exists(tiny.output() / "checkpoint-1/optimizer.safetensors"));
}

}  // namespace
}  // namespace nibble::train_cli_test
