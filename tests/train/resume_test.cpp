#include "tests/support/environment.h"
#include "tests/train/tiny_run.h"

#include <sys/mount.h>

#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <thread>

namespace nibble::resume_test {
namespace {

namespace fs = std::filesystem;
using test::Arguments;
using test::TinyRun;

void expect_same_result(const fs::path& a, const fs::path& b) {
  EXPECT_TRUE(test::adapter_bytes(a) == test::adapter_bytes(b)) << "the adapters differ";
  EXPECT_TRUE(test::slurp(a / "checkpoint-8/adapter_model.safetensors") == test::slurp(b / "checkpoint-8/adapter_model.safetensors"));
  EXPECT_TRUE(test::slurp(a / "checkpoint-8/optimizer.safetensors") == test::slurp(b / "checkpoint-8/optimizer.safetensors"));
  EXPECT_EQ(test::timeless_metrics(a), test::timeless_metrics(b));
}

// What everything random takes part in: order, dropout, packing, noise.
const Arguments all_random = {{"lora-dropout", "0.1"}, {"packing", ""}, {"max-length", "128"}, {"batch-size", "1"},
                              {"gradient-accumulation", "2"}, {"max-steps", "8"}, {"neftune-alpha", "5"}};

// Of the checkpoints in `output`; 0: none.
int newest_step(const fs::path& output) {
  int newest = 0;
  for (const auto& entry : fs::directory_iterator(output)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("checkpoint-")) newest = std::max(newest, std::stoi(name.substr(11)));
  }
  return newest;
}

void pause(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

// Waits until the program has said `text`, at most a minute.
bool wait_for(const test::RunningProgram& program, const std::string& text) {
  for (int i = 0; i < 6000; ++i) {
    if (program.err().find(text) != std::string::npos) return true;
    pause(0.01);
  }
  return false;
}

// How long the loop of a whole run takes here, and its result to compare with.
struct WholeRun {
  TinyRun tiny;
  double seconds = 0;

  explicit WholeRun(const Arguments& changes) {
    test::RunningProgram program(NIBBLE_PROGRAM, tiny.command(changes));
    EXPECT_TRUE(wait_for(program, "Steps"));
    const auto start = std::chrono::steady_clock::now();
    const auto result = program.wait();
    EXPECT_EQ(result.code, 0) << result.err;
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
};

// One run for all tests that only compare with it, made by the first of them. Those that go on from a run make their own.
const WholeRun& shared_run(const Arguments& changes) {
  static std::map<Arguments, std::unique_ptr<const WholeRun>> runs;
  auto& run = runs[changes];
  if (!run) run = std::make_unique<const WholeRun>(changes);
  return *run;
}

// Kills a run `times` times, each at a random moment of its loop, goes on with what it has left, and at last lets it end.
void expect_kills_change_nothing(const Arguments& changes, int times, unsigned seed) {
  const WholeRun& whole = shared_run(changes);
  const TinyRun killed;
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> moment(0.1, 0.9);
  Arguments resumed = changes;
  resumed["resume"] = "auto";
  for (int i = 0; i < times; ++i) {
    test::RunningProgram program(NIBBLE_PROGRAM, killed.command(resumed));
    ASSERT_TRUE(wait_for(program, "Steps")) << program.err();
    pause(moment(random) * whole.seconds);
    program.wait_after(SIGKILL);
  }
  const auto last = killed.run(resumed);
  EXPECT_EQ(last.code, 0) << last.err;
  expect_same_result(killed.output(), whole.tiny.output());
}

TEST(Resume, TheSameCommandGivesTheSameBytes) {
  const WholeRun& first = shared_run(all_random);
  const WholeRun second(all_random);
  expect_same_result(first.tiny.output(), second.tiny.output());
  const WholeRun other_seed({{"seed", "43"}, {"lora-dropout", "0.1"}});
  EXPECT_FALSE(test::adapter_bytes(first.tiny.output()) == test::adapter_bytes(other_seed.tiny.output()));
}

// What is kept of a trained head goes through checkpoints too.
const Arguments trained_head = {{"train-head", ""}, {"head-moments", "8bit"}, {"loraplus-ratio", "4"}};

TEST(Resume, KilledAtRandomMoments) { expect_kills_change_nothing({}, 3, 1); }
TEST(Resume, KilledWithDropoutPackingAndShuffling) { expect_kills_change_nothing(all_random, 3, 2); }
// DoRA's magnitudes end within a block of moments, and the adapter's rate has two ranges.
const Arguments small_moments = {{"lora-moments", "8bit"}, {"lora-state", "host"}, {"lora-rank", "3"}, {"use-dora", ""}, {"loraplus-ratio", "4"}};

TEST(Resume, KilledWithMomentsOf8BitsOnTheHost) { expect_kills_change_nothing(small_moments, 2, 4); }
TEST(Resume, KilledWithMomentsOnTheHost) { expect_kills_change_nothing({{"lora-state", "host"}}, 2, 5); }
TEST(Resume, KilledWhileTrainingTheHead) { expect_kills_change_nothing(trained_head, 2, 3); }

// Whether the process is at work on a checkpoint's folder in `output`.
bool saving(const fs::path& output, pid_t process) {
  std::error_code gone;
  for (fs::directory_iterator entry(output, gone), end; !gone && entry != end; entry.increment(gone)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(".checkpoint-") && name.ends_with("-" + std::to_string(process))) return true;
  }
  return false;
}

TEST(Resume, KilledWhileSaving) {
  const WholeRun& whole = shared_run({});
  const TinyRun killed;
  int caught = 0;
  for (int attempt = 0; attempt < 3; ++attempt) {
    test::RunningProgram program(NIBBLE_PROGRAM, killed.command({{"resume", "auto"}}));
    while (program.running() && !saving(killed.output(), program.pid())) pause(0.0005);
    caught += program.running();
    program.wait_after(SIGKILL);
  }
  EXPECT_GT(caught, 0);
  const auto last = killed.run({{"resume", "auto"}});
  EXPECT_EQ(last.code, 0) << last.err;
  expect_same_result(killed.output(), whole.tiny.output());
}

TEST(Resume, InterruptSavesAndSaysHowToGoOn) {
  const WholeRun& whole = shared_run(all_random);
  const TinyRun stopped;
  test::RunningProgram program(NIBBLE_PROGRAM, stopped.command(all_random));
  ASSERT_TRUE(wait_for(program, "step 1/8"));
  const auto result = program.wait_after(SIGINT);
  EXPECT_EQ(result.code, 130) << result.err;
  EXPECT_NE(result.err.find("--resume auto"), result.err.npos) << result.err;
  EXPECT_NE(result.err.find("checkpoint-"), result.err.npos) << result.err;
  Arguments resumed = all_random;
  resumed["resume"] = "auto";
  EXPECT_EQ(stopped.run(resumed).code, 0);
  expect_same_result(stopped.output(), whole.tiny.output());
}

// Memory that runs out behind a step: what was trained is saved, the program says where and ends with 3, and what goes on from there is
// the run as if nothing had been.
void expect_running_out_changes_nothing(const Arguments& changes, const std::vector<int>& steps) {
  const WholeRun& whole = shared_run(changes);
  for (const int step : steps) {
    SCOPED_TRACE(step);
    const TinyRun broken;
    Arguments resumed = changes;
    resumed["resume"] = "auto";
    {
      const test::EnvironmentVariable out("NIBBLE_TEST_OUT_OF_MEMORY", std::to_string(step));
      const auto result = broken.run(changes);
      test::expect_complaint(result, 3, "[train]", "out of memory", "What was trained up to step", "--vram-limit", "--resume auto");
      EXPECT_TRUE(fs::exists(broken.output() / "adapter_model.safetensors"));
    }
    const auto newest = newest_step(broken.output());
    EXPECT_GE(newest, step);
    EXPECT_LE(newest, step + 1) << "one more step may have begun";
    const auto result = broken.run(resumed);
    EXPECT_EQ(result.code, 0) << result.err;
    expect_same_result(broken.output(), whole.tiny.output());
  }
}

// Between evaluations (every third step) and checkpoints (every second), and at each kind of them.
TEST(Resume, RunningOutOfMemorySavesAndEndsWithCode3) { expect_running_out_changes_nothing({}, {1, 2, 3, 4, 7, 8}); }
TEST(Resume, RunningOutOfMemoryWithAllThatIsRandom) { expect_running_out_changes_nothing(all_random, {3}); }
TEST(Resume, RunningOutOfMemoryWhileTrainingTheHead) { expect_running_out_changes_nothing(trained_head, {4}); }

TEST(Resume, AStepToRunOutAtIsANumber) {
  const test::EnvironmentVariable out("NIBBLE_TEST_OUT_OF_MEMORY", "soon");
  test::expect_complaint(TinyRun().run(), 2, "NIBBLE_TEST_OUT_OF_MEMORY", "\"soon\"");
}

TEST(Resume, AFinishedRunStaysAsItIs) {
  const WholeRun whole({});
  const auto before = test::metrics(whole.tiny.output());
  const std::string adapter = test::adapter_bytes(whole.tiny.output());
  const auto again = whole.tiny.run({{"resume", "auto"}});
  EXPECT_EQ(again.code, 0);
  EXPECT_EQ(again.err.find("Last loss"), again.err.npos) << again.err;
  EXPECT_EQ(test::metrics(whole.tiny.output()), before);
  EXPECT_TRUE(test::adapter_bytes(whole.tiny.output()) == adapter);
}

// Of one that was longer.
TEST(Resume, PassesOverCheckpointsOfAnotherRun) {
  const TinyRun tiny;
  const Arguments other{{"max-steps", "4"}, {"learning-rate", "0.001"}};
  ASSERT_EQ(tiny.run().code, 0);
  ASSERT_EQ(tiny.run(other).code, 0);
  EXPECT_EQ(newest_step(tiny.output()), 8);
  const auto again = [&] {
    fs::remove_all(tiny.output() / "checkpoint-4");
    auto arguments = other;
    arguments["resume"] = "auto";
    return tiny.run(arguments);
  };
  const std::string adapter = test::adapter_bytes(tiny.output());
  const auto result = again();
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("checkpoint-8 is of another run; --resume auto goes on from checkpoint-2"), result.err.npos) << result.err;
  EXPECT_TRUE(test::adapter_bytes(tiny.output()) == adapter);
  for (const char* name : {"checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"}) fs::remove_all(tiny.output() / name);
  const auto anew = tiny.run({{"max-steps", "1"}});
  EXPECT_NE(anew.err.find("has an adapter already; this run's takes its place"), anew.err.npos) << anew.err;
}

TEST(Resume, NamesWhatACheckpointIs) {
  const WholeRun& whole = shared_run({});
  const std::string output = whole.tiny.output();
  test::expect_complaint(whole.tiny.run({{"resume", output}}), 1, "--resume", output, "checkpoint-N", "auto");
}

TEST(Resume, OnlyOneRunWritesToAFolder) {
  const TinyRun tiny;
  test::RunningProgram first(NIBBLE_PROGRAM, tiny.command({{"max-steps", "500"}}));
  ASSERT_TRUE(wait_for(first, "loss"));
  test::expect_complaint(tiny.run(), 2, tiny.output().string(), "Another run writes to this folder");
  EXPECT_EQ(first.wait_after(SIGKILL).signal, SIGKILL);
  EXPECT_EQ(tiny.run().code, 0);
}

TEST(Resume, AnotherOptionIsRefusedByName) {
  const WholeRun whole({});
  const auto resume_with = [&](const std::string& name, const std::string& value) {
    return whole.tiny.run({{"resume", "auto"}, {name, value}});
  };
  test::expect_complaint(resume_with("lora-rank", "8"), 2, "lora_rank", "4", "8");
  test::expect_complaint(resume_with("lora-alpha", "7"), 2, "lora_alpha");
  test::expect_complaint(resume_with("target-modules", "q_proj,v_proj"), 2, "target_modules");
  test::expect_complaint(resume_with("learning-rate", "0.001"), 2, "learning_rate", "0.002", "0.001");
  test::expect_complaint(resume_with("seed", "1"), 2, "seed");
  test::expect_complaint(resume_with("epochs", "3"), 2, "steps");
  test::expect_complaint(resume_with("train-head", ""), 2, "train_head");
  test::expect_complaint(resume_with("loraplus-ratio", "16"), 2, "loraplus_ratio");
  test::expect_complaint(resume_with("lora-moments", "8bit"), 2, "lora_moments", "f32", "8bit");
  test::expect_complaint(resume_with("double-quant", ""), 2, "double_quant", "false", "true");
  EXPECT_EQ(resume_with("lora-state", "host").code, 0) << "which changes no result";
  test::expect_complaint(resume_with("data", test::some_rows(whole.tiny.folder, "train.jsonl", 11).string()), 2, "data");
}

// The same tensors under another config.json are another base; a checkpoint from before that was kept goes on.
TEST(Resume, AnotherConfigOfTheBaseIsRefusedByName) {
  const WholeRun whole({});
  const fs::path model = whole.tiny.folder / "model";
  fs::copy(test::source_path("models/tiny-qwen3"), model);
  Json config = read_json_file(model / "config.json");
  config["rope_parameters"]["rope_theta"] = 5000.0;
  std::ofstream(model / "config.json") << config.dump();
  const Arguments again{{"resume", "auto"}, {"model", model.string()}};
  test::expect_complaint(whole.tiny.run(again), 2, "rope_parameters", "1000000.0", "5000.0");
  const fs::path path = whole.tiny.output() / "checkpoint-8/trainer_state.json";
  Json state = read_json_file(path);
  ASSERT_EQ(state["nibble"]["fingerprint"].erase("rope_parameters"), 1u);
  std::ofstream(path) << state.dump();
  EXPECT_EQ(whole.tiny.run(again).code, 0);
}

TEST(Resume, ADamagedCheckpointIsOneSentence) {
  const WholeRun whole({});
  const fs::path checkpoint = whole.tiny.output() / "checkpoint-8";
  const auto damaged = [&](const std::string& name, const std::string& bytes) {
    const std::string good = test::slurp(checkpoint / name);
    std::ofstream(checkpoint / name, std::ios::binary) << bytes;
    const auto result = whole.tiny.run({{"resume", "auto"}});
    std::ofstream(checkpoint / name, std::ios::binary) << good;
    return result;
  };
  const auto cut = [&](const std::string& name) {
    const std::string good = test::slurp(checkpoint / name);
    return good.substr(0, good.size() / 2);
  };
  for (const std::string name : {"adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json", "adapter_config.json"}) {
    test::expect_complaint(damaged(name, cut(name)), 1, name);
  }
  test::expect_complaint(damaged("trainer_state.json", "{\"global_step\": 8}"), 1, "trainer_state.json", "no checkpoint of nibble", "checkpoint-6, which --resume takes");
  test::expect_complaint(damaged("trainer_state.json", "{\"nibble\": {}, \"global_step\": -1}"), 1, "global_step");
  test::expect_complaint(whole.tiny.run({{"resume", "/nowhere/checkpoint-3"}}), 1, "/nowhere/checkpoint-3");
}

// A small file system in memory over a folder, where the process may mount one.
class SmallDisk {
 public:
  SmallDisk(const fs::path& folder, const std::string& size) : folder_(folder) {
    fs::create_directories(folder);
    mounted_ = ::mount("tmpfs", folder.c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0;
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  ~SmallDisk() {
    if (mounted_) ::umount2(folder_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  bool resize(const std::string& size) {
    return ::mount("tmpfs", folder_.c_str(), "tmpfs", MS_REMOUNT, ("size=" + size).c_str()) == 0;
  }

 private:
  fs::path folder_;
  bool mounted_ = false;
};

TEST(Resume, ADiskThatIsTooSmallIsSeenBeforeTheFirstStep) {
  const TinyRun small;
  const SmallDisk disk(small.output(), "600k");  // for the adapter alone
  if (!disk.mounted()) GTEST_SKIP() << "This process may not mount a file system.";
  for (const Arguments& changes : {Arguments{}, Arguments{{"dry-run", ""}}}) {
    test::expect_complaint(small.run(changes), 1, "The adapter and a checkpoint take", "the disk has room for");
  }
  EXPECT_TRUE(fs::is_empty(small.output()));
}

// Without a validation loss, whose best adapter lies there already.
TEST(Resume, WhereACheckpointDoesNotFitTheAdapterIsSaved) {
  TinyRun full;
  full.arguments.erase("valid");
  full.arguments.erase("eval-every");
  SmallDisk disk(full.output(), "1600k");
  if (!disk.mounted()) GTEST_SKIP() << "This process may not mount a file system.";
  test::expect_complaint(full.run(), 1, "No space left on device", "The adapter as of step 4 is in", "checkpoint-2");
  EXPECT_TRUE(fs::exists(full.output() / "adapter_model.safetensors"));
}

TEST(Resume, AFullDiskLosesNothing) {
  const WholeRun& whole = shared_run({});
  const TinyRun full;
  // There is room for one checkpoint of 1 MB and the adapter of a third of it.
  SmallDisk disk(full.output(), "1600k");
  if (!disk.mounted()) GTEST_SKIP() << "This process may not mount a file system.";
  test::expect_complaint(full.run(), 1, "checkpoint-4", "No space left on device");
  EXPECT_TRUE(fs::exists(full.output() / "checkpoint-2/trainer_state.json"));
  EXPECT_FALSE(fs::exists(full.output() / "checkpoint-4"));
  ASSERT_TRUE(disk.resize("16m"));
  EXPECT_EQ(full.run({{"resume", "auto"}}).code, 0);
  expect_same_result(full.output(), whole.tiny.output());
}

}  // namespace
}  // namespace nibble::resume_test
