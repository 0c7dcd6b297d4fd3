#include "nibble/model/tuning_file.h"

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/io/json.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <array>

namespace nibble::tuning_file_test {
namespace {

class TuningFile : public testing::Test {
 protected:
  void SetUp() override {
    if (test::must_skip(direct_matrix_tile(test::device().info()).has_value())) GTEST_SKIP() << "The adapter has no matrices.";
    tuning().products = {{{MatrixLayout::nn, 100, 200, 300}, {direct_matrix_tile(test::device().info()).value(), 3, 7}}};
    tuning().tiled_rows = 48;
    save_matrix_tuning(test::device(), folder_.path());
    tuning() = {};
  }
  void TearDown() override { tuning() = {}; }

  static MatrixTuning& tuning() { return matrix_tuning(test::device()); }
  std::string file() const { return folder_ / std::string(tuning_file_name); }
  Json read() const { return read_json_file(file()); }
  void write(const Json& json) { folder_.write(std::string(tuning_file_name), write_json(json)); }

  test::TemporaryFolder folder_;
};

TEST_F(TuningFile, GivesBackWhatWasKept) {
  const MatrixShape other{MatrixLayout::nt, 100, 200, 310};
  const std::uint32_t untuned = matrix_plan(test::device(), other, true).splits;
  load_matrix_tuning(test::device(), folder_.path());
  EXPECT_EQ(tuning().tiled_rows, 48u);
  EXPECT_TRUE(prefers_tiles(test::device(), 48));
  EXPECT_FALSE(prefers_tiles(test::device(), 47));
  ASSERT_EQ(tuning().products.size(), 1u);
  const auto& [shape, plan] = tuning().products[0];
  EXPECT_EQ(shape.layout, MatrixLayout::nn);
  EXPECT_EQ(shape.rows, 100u);
  EXPECT_EQ(shape.columns, 200u);
  EXPECT_EQ(shape.inner, 300u);
  EXPECT_EQ(plan.splits, 3u);
  EXPECT_EQ(plan.wave, 7u);
  EXPECT_TRUE(plan.tile.direct);
  const MatrixTile own = direct_matrix_tile(test::device().info()).value();
  EXPECT_EQ(plan.tile.block_n, own.block_n);
  // A similar shape goes by it, a very different one by the adapter's own tile.
  EXPECT_EQ(matrix_plan(test::device(), {MatrixLayout::nn, 100, 200, 310}, true).splits, 3u);
  EXPECT_EQ(matrix_plan(test::device(), {MatrixLayout::nn, 100, 200, 310}, false).tile.direct, false);
  EXPECT_EQ(matrix_plan(test::device(), other, true).splits, untuned);
}

TEST_F(TuningFile, LeavesOthersAlone) {
  Json json = read();
  json["Another (1.0)"] = {{"tiled_rows", 1}, {"products", Json::array()}};
  const Json mine = json.begin().value();
  write(json);
  save_matrix_tuning(test::device(), folder_.path());
  EXPECT_EQ(read().size(), 2u);
  EXPECT_TRUE(read().contains("Another (1.0)"));
  json = Json::object();
  json["Another (1.0)"] = mine;
  write(json);
  load_matrix_tuning(test::device(), folder_.path());
  EXPECT_TRUE(tuning().products.empty());
}

TEST_F(TuningFile, IgnoresWhatIsDamagedOrDoesNotSuit) {
  int warnings = 0;
  set_log_hook([&](LogLevel level, std::string_view message) {
    warnings += level == LogLevel::warning && message.find("--sweep") != message.npos;
  });
  Json unsuitable = read();
  unsuitable.begin().value()["products"][0]["block"] = {4096, 4096, 4096};
  write(unsuitable);
  load_matrix_tuning(test::device(), folder_.path());
  EXPECT_TRUE(tuning().products.empty());
  EXPECT_EQ(warnings, 0);
  Json wrong = read();
  wrong.begin().value()["products"][0]["block"] = "large";
  write(wrong);
  load_matrix_tuning(test::device(), folder_.path());
  folder_.write(std::string(tuning_file_name), "{\"cut");
  load_matrix_tuning(test::device(), folder_.path());
  set_log_hook({});
  EXPECT_EQ(warnings, 2);
  save_matrix_tuning(test::device(), folder_.path());
  EXPECT_EQ(read().size(), 1u);
}

TEST_F(TuningFile, WithoutAFolderThereIsNothing) {
  load_matrix_tuning(test::device(), {});
  EXPECT_TRUE(tuning().products.empty());
  EXPECT_THROW(save_matrix_tuning(test::device(), {}), UsageError);
}

TEST(MatrixPlans, SuitTheirTiles) {
  const gpu::AdapterInfo& info = test::device().info();
  const auto own = default_matrix_tile(info);
  if (test::must_skip(own.has_value())) GTEST_SKIP() << "The adapter has no matrices.";
  EXPECT_TRUE(suits(info, *own));
  EXPECT_TRUE(suits(info, direct_matrix_tile(info).value()));
  MatrixTile tile = *own;
  tile.matrix.k *= 3;
  EXPECT_FALSE(suits(info, tile));
  tile = *own;
  tile.block_k *= 1024;
  EXPECT_FALSE(suits(info, tile));
  tile = *own;
  tile.part_n += 1;
  EXPECT_FALSE(suits(info, tile));
  tile = *own;
  tile.band = 0;
  EXPECT_FALSE(suits(info, tile));
}

gpu::AdapterInfo h100() {
  gpu::AdapterInfo info;
  info.name = "NVIDIA H100";
  info.type = gpu::AdapterType::discrete;
  info.subgroup_min_size = info.subgroup_max_size = 32;
  info.matrix_configs = {{16, 16, 16}};
  info.limits.workgroup_storage = 48 << 10;
  info.limits.workgroup_invocations = 1024;
  return info;
}

// Products of a few rows through weights of Qwen3-4B in NF4.
TEST(MatrixPlans, SplitFewRowsUntilBlocksOccupyTheAdapter) {
  const gpu::AdapterInfo info = h100();
  const auto plan = [&](std::uint32_t rows, std::uint32_t columns, std::uint32_t inner) { return decoding_plan(info, {MatrixLayout::nt, rows, columns, inner}); };
  EXPECT_EQ(plan(3, 6144, 2560).splits, 5u);   // 96 blocks for 528 places
  EXPECT_EQ(plan(16, 2560, 9728).splits, 13u);
  EXPECT_EQ(plan(16, 19456, 2560).splits, 1u);
  EXPECT_EQ(plan(16, 64, 2560).splits, 10u);   // of at least four steps
  EXPECT_EQ(plan(3, 6144, 2560).tile.block_m, 16u);
  EXPECT_EQ(plan(17, 6144, 2560).tile.block_m, 32u);
  EXPECT_EQ(plan(64, 6144, 2560).tile.block_m, 64u);
  for (const std::uint32_t rows : {1u, 32u, 64u}) EXPECT_TRUE(suits(info, plan(rows, 6144, 2560).tile)) << rows;
  // Of projections side by side, blocks cross no end.
  const std::array<std::uint32_t, 3> ends{4096, 4096 + 96, 4096 + 192};
  EXPECT_EQ(decoding_plan(info, {MatrixLayout::nt, 16, 4096 + 192, 2560}, ends).tile.block_n, 32u);
}

// Products of 512 rows through weights of Qwen3-4B.
TEST(MatrixPlans, TakeLongStepsForBlocksAloneAndShortOnesForPairs) {
  gpu::AdapterInfo info = h100();
  const MatrixShape alone{MatrixLayout::nn, 512, 4096, 2560};   // 128 blocks for 132 processors
  const MatrixShape pairs{MatrixLayout::nn, 512, 2560, 19456};  // 80 blocks, whose thirds are 240 of 264
  EXPECT_EQ(estimated_plan(info, alone, false).tile.block_k, 64u);
  EXPECT_EQ(estimated_plan(info, alone, false).splits, 1u);
  EXPECT_EQ(estimated_plan(info, pairs, false).tile.block_k, 32u);
  EXPECT_EQ(estimated_plan(info, pairs, false).splits, 3u);
  EXPECT_EQ(estimated_plan(info, {MatrixLayout::nn, 512, 2560, 151936}, false).tile.block_k, 64u);
  // Of others it is not known how they divide their memory.
  info.name = "Another H100";
  EXPECT_EQ(estimated_plan(info, pairs, false).tile.block_k, 64u);
}

}  // namespace
}  // namespace nibble::tuning_file_test
