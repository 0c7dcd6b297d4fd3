#include "nibble/io/json.h"
#include "tests/cli/run_program.h"
#include "tests/support/files.h"

#include <chrono>
#include <thread>

namespace nibble::bench_load_test {
namespace {

using test::run_nibble;

const std::string tiny_model = test::source_path("models/tiny-qwen3");

TEST(BenchLoad, ChecksThenTimesAModelFolder) {
  const test::TemporaryFolder folder;
  const auto result = run_nibble({"bench", "load", "--gpu", "0", "--model", tiny_model, "--folder", folder.path(), "--length", "8",
                                  "--lora-rank", "2", "--repeats", "2", "--json", "-"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  const Json row = parse_json(result.out, "output")["rows"][0];
  EXPECT_EQ(row["correct"], true);
  EXPECT_EQ(row["checked"]["nf4_blocks"], 4 * 7 * 3 * 64);
  EXPECT_EQ(row["checked"]["values"], 3 * 4 * 256);
  const double seconds = row["seconds"]["median"];
  EXPECT_NEAR(row["gbs"].get<double>() * 1e9 * seconds, row["bytes"].get<double>(), 1);
  for (const char* part : {"read", "quantize", "dense", "upload"}) EXPECT_GT(row["thread_seconds"][part], 0) << part;
  for (const char* start : {"cold", "cached"}) {
    EXPECT_GT(row[start]["pipelines"], 10) << start;
    EXPECT_GE(row[start]["to_first_step_seconds"], row[start]["first_step_seconds"]) << start;
  }
  EXPECT_EQ(row["cold"]["loss"], row["cached"]["loss"]);
  // What it is about, as it goes on.
  for (const char* said : {"no kernel compiled", "Making the kernels", "kernels from disk", "Loading alone, 2 of 2"}) {
    EXPECT_NE(result.err.find(said), std::string::npos) << result.err;
  }
}

TEST(BenchLoad, LeavesNothingWhereItIsKilled) {
  const test::TemporaryFolder folder;
  test::RunningProgram program(NIBBLE_PROGRAM, {"bench", "load", "--gpu", "0", "--model", tiny_model, "--folder", folder.path()});
  const auto wait_until = [&](bool empty) {
    for (int i = 0; i < 2000 && std::filesystem::is_empty(folder.path()) != empty; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_EQ(std::filesystem::is_empty(folder.path()), empty);
  };
  wait_until(false);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(program.wait_after(SIGKILL).signal, SIGKILL);
  wait_until(true);
}

TEST(BenchLoad, RefusesAnAdapterThatIsNotThereBeforeItWrites) {
  const test::TemporaryFolder folder;
  const auto result = run_nibble({"bench", "load", "--gpu", "no such", "--folder", folder.path()});
  EXPECT_EQ(result.code, 2) << result.err;
  EXPECT_NE(result.err.find("No adapter fits"), std::string::npos) << result.err;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace nibble::bench_load_test
