#include "nibble/base/error.h"
#include "nibble/kernels/best_scores.h"
#include "tests/support/gpu_test.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace nibble::best_scores_test {
namespace {

class Lists {
 public:
  Lists(std::uint32_t rows, std::uint32_t scores) : scores_(scores), room_(make_best_scores_room(test::device(), rows, scores)) {}

  std::vector<std::optional<BestOfRow>> of(const std::vector<float>& values) {
    const auto rows = static_cast<std::uint32_t>(values.size()) / scores_;
    test::run(BestScores{.scores = test::upload(values, {rows, scores_}), .room = room_});
    const auto words = test::device().read<std::uint32_t>(room_.found.rows(0, rows));
    std::vector<std::optional<BestOfRow>> result;
    for (std::uint32_t row = 0; row < rows; ++row) result.push_back(best_of(std::span(words).subspan(row * room_.found.dim(1), room_.found.dim(1))));
    return result;
  }

 private:
  std::uint32_t scores_;
  BestScoresRoom room_;
};

// All of the row from the bound on, which at least as many reach as are promised.
void expect_best(const BestOfRow& best, std::span<const float> row) {
  std::size_t at = 0;
  for (std::uint32_t id = 0; id < row.size(); ++id) {
    if (row[id] < best.bound) continue;
    ASSERT_LT(at, best.tokens.size()) << "of " << row.size();
    EXPECT_EQ(best.tokens[at].id, id);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(best.tokens[at++].score), std::bit_cast<std::uint32_t>(row[id]));
  }
  EXPECT_EQ(at, best.tokens.size());
  EXPECT_GE(at, best_scores_found(static_cast<std::uint32_t>(row.size())));
}

TEST(BestScores, AllFromTheBoundOnOfEachRow) {
  for (const std::uint32_t scores : {1u, 31u, 33u, 4096u, 6145u, 151936u}) {
    constexpr std::uint32_t rows = 3;
    const std::vector<float> values = test::random_values(rows * scores, scores, 4.0f);
    Lists lists(rows, scores);
    for (int round = 0; round < 2; ++round) {  // a list of before does not matter
      const auto best = lists.of(values);
      for (std::uint32_t row = 0; row < rows; ++row) {
        ASSERT_TRUE(best[row].has_value()) << scores;
        expect_best(*best[row], std::span(values).subspan(row * scores, scores));
      }
    }
  }
}

TEST(BestScores, PromisesMoreOfLargerVocabularies) {
  EXPECT_EQ(best_scores_found(1), 1u);
  EXPECT_EQ(best_scores_found(1000), 16u);
  EXPECT_EQ(best_scores_found(151936), 64u);
}

TEST(BestScores, EqualsAndBothZerosAreThereUpToTheRoom) {
  Lists lists(1, 900);
  std::vector<float> values(900, -2.0f);
  expect_best(*lists.of(values)[0], values);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = i % 2 ? 0.0f : -0.0f;
  expect_best(*lists.of(values)[0], values);
  Lists many(1, 5000);
  EXPECT_FALSE(many.of(std::vector<float>(5000, 1.0f))[0].has_value());
}

TEST(BestScores, ExtremesKeepTheirOrder) {
  std::vector<float> values(200, -std::numeric_limits<float>::max());
  values[7] = std::numeric_limits<float>::max(), values[150] = std::numeric_limits<float>::denorm_min(), values[151] = -1e-20f;
  expect_best(*Lists(1, 200).of(values)[0], values);
}

TEST(BestScores, NothingIsSaidOfARowThatIsNotFinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {nan, -nan, infinity, -infinity}) {
    std::vector<float> values = test::random_values(2 * 3000, 1);
    values[3000 + 2999] = bad;
    const auto best = Lists(2, 3000).of(values);
    EXPECT_TRUE(best[0].has_value());
    EXPECT_FALSE(best[1].has_value()) << bad;
  }
}

TEST(BestScores, RefusesWhatTheRoomIsNotFor) {
  const BestScoresRoom room = make_best_scores_room(test::device(), 1, 5000);
  gpu::Recorder recorder(test::device());
  EXPECT_THROW(record(recorder, BestScores{.scores = test::upload(std::vector<float>(100), {1, 100}), .room = room}), Error);
  EXPECT_THROW(record(recorder, BestScores{.scores = test::upload(std::vector<float>(10000), {2, 5000}), .room = room}), Error);
}

}  // namespace
}  // namespace nibble::best_scores_test
