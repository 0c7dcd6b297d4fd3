#include "nibble/io/json.h"
#include "tests/cli/run_program.h"
#include "tests/support/environment.h"
#include "tests/support/disk.h"

#include <stdlib.h>

#include <algorithm>
#include <bit>
#include <map>

namespace nibble::bench_test {
namespace {

using test::run_nibble;

const std::string tiny_model = test::source_path("models/tiny-qwen3");

// While it lives, programs take kernels from a folder in which one text is changed.
class ChangedKernel {
 public:
  ChangedKernel(const std::string& file, const std::string& from, const std::string& to) {
    std::filesystem::copy(test::source_path("nibble/kernels"), folder_.path(), std::filesystem::copy_options::recursive);
    std::string text = test::slurp(folder_ / file);
    const auto at = text.find(from);
    EXPECT_NE(at, text.npos) << from;
    folder_.write(file, text.replace(at, from.size(), to));
  }

 private:
  test::TemporaryFolder folder_;
  test::EnvironmentVariable kernels_{"NIBBLE_WGSL_DIR", folder_.path().string()};
};

// While it lives, programs keep their caches in a folder of their own.
class OwnCache {
  test::TemporaryFolder folder_;
  test::EnvironmentVariable cache_{"XDG_CACHE_HOME", folder_.path().string()};
};

// Of a GPU; the software adapter has them, so that nothing is left out where that is tested.
bool lacks_matrices(const auto& result) {
  const bool refused = result.code == 2 && result.err.find("cannot compute with") != std::string::npos;
  return refused && result.err.find("llvmpipe") == std::string::npos;
}

TEST(BenchMatmul, VerifiesAndTimesEachProduct) {
  const auto result = run_nibble({"bench", "matmul", "--gpu", "0", "--model", tiny_model, "--rows", "9", "--products", "o", "head",
                                  "--repeats", "1", "--compute", "f32", "--json", "-", "--peak-tflops", "2"});
  ASSERT_EQ(result.code, 0) << result.err;
  const Json report = parse_json(result.out, "output");
  ASSERT_EQ(report["rows"].size(), 4u);
  for (const Json& row : report["rows"]) {
    EXPECT_TRUE(row["correct"].get<bool>()) << row;
    EXPECT_GT(row["error"], 0.0) << row;
    EXPECT_GT(row["tflops"], 0.0) << row;
    EXPECT_TRUE(row["plan"].is_null()) << row;
  }
  EXPECT_EQ(report["rows"][1]["layout"], "nn");
  EXPECT_EQ(report["rows"][1]["columns"], 384);
}

TEST(BenchMatmul, KeepsWhatASweepFinds) {
  const OwnCache cache;
  const std::vector<std::string> sweep{"bench", "matmul", "--gpu", "0", "--model", tiny_model, "--rows", "9", "--products", "o",
                                       "--layouts", "nn", "--repeats", "1", "--compute", "matrix", "--sweep", "--save", "--json", "-"};
  const auto result = run_nibble(sweep);
  if (lacks_matrices(result)) GTEST_SKIP() << result.err;
  ASSERT_EQ(result.code, 0) << result.err;
  const Json report = parse_json(result.out, "output");
  ASSERT_GT(report["rows"].size(), 5u);
  bool direct = false, split = false;
  for (const Json& row : report["rows"]) {
    EXPECT_TRUE(row["correct"].get<bool>() && row["decode_seconds"] > 0.0) << row;
    direct = direct || row["direct"];
    split = split || row["splits"] > 1;
  }
  EXPECT_TRUE(direct && split && result.err.find("matrix-tuning.json") != result.err.npos) << result.err;
  // Later commands go by the winner of its kind.
  auto again = sweep;
  std::replace(again.begin(), again.end(), std::string("--save"), std::string("--profile")), std::erase(again, "--sweep");
  const auto later = run_nibble(again);
  ASSERT_EQ(later.code, 0) << later.err;
  const auto calls = [&](std::string_view of) { return std::stoi(later.err.substr(later.err.find(' ', later.err.find(of)))); };
  EXPECT_GE(calls("\nnf4_dequantize"), calls("\nproduct_matrix")) << later.err;  // before each product
  const Json row = parse_json(later.out, "output")["rows"][0];
  const Json* fastest = nullptr;
  for (const Json& tried : report["rows"]) {
    if (tried["direct"] != row["direct"]) continue;
    if (!fastest || tried["seconds"]["median"] < (*fastest)["seconds"]["median"]) fastest = &tried;
  }
  EXPECT_TRUE(fastest && row["plan"] == (*fastest)["plan"]) << row;
  const ChangedKernel broken("product_splits.wgsl", "sums += part", "sums -= part");
  const auto wrong = run_nibble(sweep);
  EXPECT_TRUE(wrong.code == 3 && wrong.err.find("WRONG") != wrong.err.npos) << wrong.err;
}

TEST(BenchMatmul, TakesTogglesOfDawn) {
  const auto result = run_nibble({"bench", "matmul", "--gpu", "0", "--model", tiny_model, "--rows", "9", "--products", "o",
                                  "--layouts", "nt", "--repeats", "1", "--compute", "f32", "--json", "-", "--toggle",
                                  "no disable_robustness", "--toggle", "skip_validation"});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto toggles = parse_json(result.out, "output")["device"]["toggles"].get<std::vector<std::string>>();
  const auto has = [&](std::string_view name) { return std::find(toggles.begin(), toggles.end(), name) != toggles.end(); };
  EXPECT_TRUE(has("no disable_robustness") && has("skip_validation") && has("no timestamp_quantization"));
  EXPECT_FALSE(has("disable_robustness"));
}

TEST(BenchMatmul, SweepsMatricesAlone) {
  const auto f32 = run_nibble({"bench", "matmul", "--gpu", "0", "--model", tiny_model, "--compute", "f32", "--sweep"});
  EXPECT_EQ(f32.code, 2) << f32.err;
  EXPECT_NE(f32.err.find("subgroup matrices"), std::string::npos) << f32.err;
  EXPECT_EQ(run_nibble({"bench", "matmul", "--gpu", "0", "--model", tiny_model, "--save"}).code, 2);
}

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

// Of four layers with four joint weights each. Where a pass turns its weights are decoded already, and rows are added up by themselves.
TEST(BenchStep, TakesFewDispatchesOnMatrixUnits) {
  const auto result = run_nibble({"bench", "step", "--gpu", "0", "--model", tiny_model, "--length", "40", "--compute", "matrix", "--steps", "1",
                                  "--json", "-", "--profile"});
  if (lacks_matrices(result)) GTEST_SKIP() << result.err;
  ASSERT_EQ(result.code, 0) << result.err;
  std::map<std::string, int> calls;
  const Json row = parse_json(result.out, "output")["rows"][0];
  for (const Json& kernel : row["kernels"]) calls[kernel["kernel"]] += kernel["calls"].get<int>();
  EXPECT_EQ(calls["lora_matrix:down"], 16);
  EXPECT_EQ(calls["lora_rows_sum:main"], 2 * 4) << "the other 24 beside decoding";
  EXPECT_EQ(calls["lora_gradients_sum:main"], 4 + 1) << "once a layer, before attention has the room, and at the end";
  EXPECT_EQ(calls["rms_norm:backward_packed"] + calls["rms_norm:backward_packed_and_y"], 2 * 4 - 1) << "all but the last of a pass";
}

// Four layers, of which two have slots: a step turns back to them at both ends.
TEST(BenchStep, StreamsLayers) {
  const auto row_of = [](std::vector<std::string> more) {
    std::vector<std::string> all{"bench", "step", "--gpu", "0", "--model", tiny_model, "--length", "9", "--json", "-"};
    all.insert(all.end(), more.begin(), more.end());
    const auto result = run_nibble(all);
    EXPECT_EQ(result.code, 0) << result.err;
    return parse_json(result.out, "output")["rows"][0];
  };
  const Json plain = row_of({}), all = row_of({"--residency", "streamed"}), three = row_of({"--stream-layers", "3"});
  EXPECT_EQ(plain["host_bytes"], 0);
  EXPECT_EQ(plain["copied_bytes"], 0);
  EXPECT_TRUE(plain["least_copy_seconds"].is_null());
  const std::uint64_t host = all["host_bytes"], layer = host / 4;
  EXPECT_EQ(all["copied_bytes"], 4 * layer);
  EXPECT_GT(all["least_copy_seconds"], 0);
  EXPECT_EQ(three["host_bytes"], 3 * layer);
  EXPECT_EQ(three["copied_bytes"], 2 * layer);
  // Of buffers below 4 MiB Dawn takes powers of two.
  const std::uint64_t taken = std::bit_ceil(layer);
  EXPECT_EQ(plain["memory_bytes"].get<std::uint64_t>() - all["memory_bytes"].get<std::uint64_t>(), 2 * taken);
  EXPECT_EQ(plain["memory_bytes"].get<std::uint64_t>() - three["memory_bytes"].get<std::uint64_t>(), taken);
  for (const Json& row : {all, three}) EXPECT_EQ(row["loss"], plain["loss"]);
  const auto refused = run_nibble({"bench", "step", "--gpu", "0", "--model", tiny_model, "--stream-layers", "5"});
  EXPECT_EQ(refused.code, 2) << refused.err;
  EXPECT_NE(refused.err.find("5 layers are to be streamed; the model has 4"), std::string::npos) << refused.err;
}

TEST(BenchStep, StreamsLayersFromADisk) {
  const test::FolderOnDisk disk;
  const auto row_of = [&](std::vector<std::string> more) {
    std::vector<std::string> all{"bench", "step", "--gpu", "0", "--model", tiny_model, "--length", "9", "--residency", "streamed",
                                 "--stream-dir", disk.path().string(), "--json", "-"};
    all.insert(all.end(), more.begin(), more.end());
    const auto result = run_nibble(all);
    EXPECT_EQ(result.code, 0) << result.err;
    return parse_json(result.out, "output")["rows"][0];
  };
  const Json in_ram = row_of({}), on_disk = row_of({"--stream-memory", "disk"}), planned = row_of({"--ram-limit", "129.5MiB"});
  const std::uint64_t layer = in_ram["host_bytes"].get<std::uint64_t>() / 4;
  EXPECT_EQ(in_ram["disk_bytes"], 0);
  for (const Json* row : {&on_disk, &planned}) {
    EXPECT_EQ((*row)["host_bytes"], 3 * layer);
    EXPECT_EQ((*row)["disk_bytes"], 4 * layer);
    EXPECT_EQ((*row)["plan"]["disk_bytes"], 4 * layer);
    EXPECT_EQ((*row)["copied_bytes"], in_ram["copied_bytes"]);
    EXPECT_LE((*row)["read_bytes"].get<std::uint64_t>(), 4 * layer);
    EXPECT_EQ((*row)["loss"], in_ram["loss"]);
  }
}

TEST(BenchStep, RefusesAnUnknownShape) {
  const auto result = run_nibble({"bench", "step", "--gpu", "0", "--shape", "qwen3-5b"});
  EXPECT_EQ(result.code, 2) << result.err;
  EXPECT_NE(result.err.find("qwen3-4b"), std::string::npos) << result.err;
}

// What a limit leaves is planned, held and about what is measured; the least that is named without one is less.
TEST(BenchStep, KeepsToALimit) {
  const std::vector<std::string> step{"bench", "step", "--gpu", "0", "--model", tiny_model, "--batch", "8", "--length", "64",
                                      "--steps", "1", "--compute", "f32", "--json", "-"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), step.begin(), step.end());
    const auto result = run_nibble(more);
    EXPECT_EQ(result.code, 0) << result.err;
    return parse_json(result.out, "output")["rows"][0];
  };
  const Json whole = with({}), plan = whole["plan"];
  const std::uint64_t all = plan["bytes"], activations = plan["classes"]["activations"], limit = all - activations / 2;
  const Json row = with({"--vram-limit", std::to_string(limit)});
  for (const Json* one : {&whole, &row}) {
    const double planned = (*one)["plan"]["bytes"], measured = (*one)["memory_bytes"];
    EXPECT_LE(measured, planned);
    EXPECT_GE(measured, 0.98 * planned);
  }
  EXPECT_LE(row["plan"]["bytes"].get<std::uint64_t>(), limit);
  EXPECT_NEAR(row["loss"].get<double>(), whole["loss"].get<double>(), 1e-4);
  EXPECT_EQ(with({"--vram-limit", std::to_string(limit), "--plan"})["plan"], row["plan"]);
  std::vector<std::string> small = step;
  small.insert(small.end(), {"--vram-limit", "1MiB"});
  EXPECT_EQ(run_nibble(small).code, 2);
}

test::ProgramResult bench_attention(const std::string& compute) {
  return run_nibble({"bench", "attention", "--gpu", "0", "--model", tiny_model, "--batch", "1", "3", "--length", "70", "--repeats",
                     "1", "--compute", compute, "--peak-tflops", "2", "--peak-gbs", "20", "--profile", "--json", "-"});
}

TEST(BenchAttention, ComparesThenTimesBothPasses) {
  const auto result = bench_attention("f32");
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("3 x 70"), std::string::npos) << result.err;
  const Json report = parse_json(result.out, "output");
  EXPECT_EQ(report["benchmark"], "attention");
  ASSERT_EQ(report["rows"].size(), 2u);
  const Json& row = report["rows"][1];
  EXPECT_EQ(row["shape"], "3x70");
  EXPECT_EQ(row["correct"], true);
  EXPECT_LT(row["errors"]["sampled"], 1e-5);
  EXPECT_GT(row["errors"]["sampled"], 0) << "the host's sums cannot be the device's";
  // 6 heads of 64, half of the square of 70 and its diagonal, three segments.
  const double pair_flops = 3.0 * 70 * 71 / 2 * 6 * 64;
  for (const auto& [pass, products] : {std::pair("forward", 4.0), std::pair("backward", 10.0)}) {
    const Json& of = row[pass];
    EXPECT_NEAR(of["tflops"].get<double>() * 1e12 * of["seconds"]["median"].get<double>(), products * pair_flops, 1) << pass;
    EXPECT_GT(of["share_of_peak"], 0) << pass;
  }
  EXPECT_GT(row["kernels"].size(), 3u);
  for (const Json& kernel : row["kernels"]) EXPECT_EQ(kernel["calls"], 1);
}

TEST(BenchAttention, ComparesMatrixUnitsWithF32) {
  const auto result = bench_attention("matrix");
  if (lacks_matrices(result)) GTEST_SKIP() << result.err;
  ASSERT_EQ(result.code, 0) << result.err;
  const Json row = parse_json(result.out, "output")["rows"][1];
  EXPECT_EQ(row["by"], "matrix units");
  for (const char* error : {"o", "d_qkv", "sampled"}) {
    EXPECT_GT(row["errors"][error], 1e-5) << error;
    EXPECT_LT(row["errors"][error], 0x1p-10) << error;
  }
}

TEST(BenchAttention, SaysWhereResultsAreWrong) {
  const ChangedKernel changed("qk_norm_rope.wgsl", "pair.high * turn.cosine + pair.low * turn.sine",
                              "pair.high * turn.cosine - pair.low * turn.sine");
  for (const char* compute : {"f32", "matrix"}) {
    const auto result = bench_attention(compute);
    if (lacks_matrices(result)) continue;
    EXPECT_EQ(result.code, 3) << compute << result.err;
    EXPECT_NE(result.err.find("WRONG"), std::string::npos) << compute << result.err;
    EXPECT_EQ(parse_json(result.out, "output")["rows"][0]["correct"], false) << compute;
  }
}

TEST(BenchAttention, RefusesMoreTokensThanItCanHold) {
  const auto result = run_nibble({"bench", "attention", "--gpu", "0", "--batch", "65536", "--length", "65536"});
  EXPECT_EQ(result.code, 2) << result.err;
  EXPECT_NE(result.err.find("tokens are measured"), std::string::npos) << result.err;
}

TEST(BenchGenerate, ComparesThenTimesPromptAndTokens) {
  const auto result = run_nibble({"bench", "generate", "--gpu", "0", "--model", tiny_model, "--prompt-length", "5", "40",
                                  "--new-tokens", "3", "--lora-rank", "4", "--repeats", "2", "--compute", "f32", "--peak-gbs",
                                  "20", "--json", "-"});
  ASSERT_EQ(result.code, 0) << result.err;
  const Json report = parse_json(result.out, "output");
  EXPECT_EQ(report["benchmark"], "generate");
  ASSERT_EQ(report["rows"].size(), 2u);
  const Json& row = report["rows"][1];
  EXPECT_EQ(row["prompt_length"], 40);
  EXPECT_LT(row["error"], row["allowed"]);
  const double prompt = row["prompt"]["seconds"]["median"], token = row["token"]["seconds"]["median"];
  EXPECT_DOUBLE_EQ(row["prompt"]["tokens_per_second"], 40 / prompt);
  EXPECT_DOUBLE_EQ(row["token"]["tokens_per_second"], 1 / token);
  EXPECT_EQ(row["token"]["seconds"]["repeats"], 2);
  // Of the tiny model's four layers: codes and scales, adapters of rank 4, keys and values; and the head in f32.
  const double weights = 2 * 384 * 256 + 2 * 128 * 256 + 3 * 768 * 256, ranks = 2 * (384 + 256) + 2 * (128 + 256) + 3 * (768 + 256);
  const double bytes = 4 * (weights * 4.5 / 8 + 4 * 4 * ranks + 2 * 4 * 2 * 64 * (40 + 2)) + 4.0 * 4096 * 256;
  EXPECT_DOUBLE_EQ(row["token"]["bytes"], bytes);
  EXPECT_DOUBLE_EQ(row["token"]["share_of_peak"], bytes / 20e9 / token);
}

TEST(BenchGenerate, SaysWhereLogitsAreWrong) {
  const ChangedKernel changed("lib/attention_decode.wgsl", "exp(score - largest)", "exp(0.9 * (score - largest))");
  const auto result = run_nibble({"bench", "generate", "--gpu", "0", "--model", tiny_model, "--prompt-length", "40", "--new-tokens",
                                  "3", "--repeats", "1"});
  EXPECT_EQ(result.code, 3) << result.err;
  EXPECT_NE(result.out.find("WRONG"), std::string::npos) << result.out;
}

TEST(BenchGenerate, RefusesMoreTokensThanTheModelHasPositions) {
  const auto result = run_nibble({"bench", "generate", "--gpu", "0", "--model", tiny_model, "--prompt-length", "1000",
                                  "--new-tokens", "25"});
  EXPECT_EQ(result.code, 2) << result.err;
  EXPECT_NE(result.err.find("1024 positions"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace nibble::bench_test
