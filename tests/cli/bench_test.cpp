#include "nibble/io/json.h"
#include "tests/cli/run_program.h"

namespace nibble {
namespace {

using test::run_nibble;

const std::string tiny_model = test::source_path("models/tiny-qwen3");

TEST(BenchStep, WritesTheTableAsJson) {
  const test::TemporaryFolder folder;
  const std::string file = folder / "step.json";
  const auto result = run_nibble({"bench", "step", "--gpu", "0", "--model", tiny_model, "--batch", "1", "2", "--length", "9",
                                  "--steps", "3", "--json", file, "--peak-tflops", "2", "--peak-gbs", "20", "--profile"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.out.find("2 x 9"), std::string::npos) << result.out;
  const Json report = read_json_file(file);
  EXPECT_EQ(report["tool"], "nibble");
  EXPECT_EQ(report["benchmark"], "step");
  EXPECT_EQ(report["settings"]["lora_rank"], 16);
  for (const char* key : {"version", "commit", "date", "compute"}) EXPECT_TRUE(report[key].is_string()) << key;
  for (const char* key : {"name", "type", "driver", "backend"}) EXPECT_TRUE(report["device"][key].is_string()) << key;
  ASSERT_EQ(report["rows"].size(), 2u);
  const Json& row = report["rows"][1];
  EXPECT_EQ(row["shape"], "2x9");
  const double median = row["seconds"]["median"];
  EXPECT_EQ(row["seconds"]["repeats"], 3);
  EXPECT_LE(row["seconds"]["min"], median);
  EXPECT_GE(row["seconds"]["max"], median);
  EXPECT_DOUBLE_EQ(row["tokens_per_second"], 18 / median);
  EXPECT_DOUBLE_EQ(row["share_of_peak"], row["tflops"].get<double>() / 2);
}

TEST(BenchStep, GivesEachKernelItsBound) {
  const auto result = run_nibble({"bench", "step", "--gpu", "0", "--model", tiny_model, "--length", "9", "--json", "-",
                                  "--peak-tflops", "2", "--peak-gbs", "20", "--profile"});
  ASSERT_EQ(result.code, 0) << result.err;
  const Json row = parse_json(result.out, "output")["rows"][0];
  ASSERT_GT(row["kernels"].size(), 10u);
  double share = 0;
  for (const Json& kernel : row["kernels"]) {
    share += kernel["share"].get<double>();
    EXPECT_GE(kernel["calls"], 1) << kernel;
    const double seconds = kernel["seconds"], bytes = kernel["gbs"].get<double>() * 1e9 * seconds,
                 flops = kernel["tflops"].get<double>() * 1e12 * seconds;
    const double bound = std::max(bytes / 20e9, flops / 2e12);
    // A launcher that states no work has no bound.
    EXPECT_NEAR(kernel["bound_seconds"].is_null() ? 0.0 : kernel["bound_seconds"].get<double>(), bound, 1e-12) << kernel;
  }
  EXPECT_NEAR(share, 1, 1e-9);
  EXPECT_NE(result.err.find("bound ms"), std::string::npos) << result.err;
}

TEST(BenchStep, RefusesAnUnknownShape) {
  const auto result = run_nibble({"bench", "step", "--gpu", "0", "--shape", "qwen3-5b"});
  EXPECT_EQ(result.code, 2) << result.err;
  EXPECT_NE(result.err.find("qwen3-4b"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace nibble
