#include "nibble/report/classification_metrics.h"

#include <cmath>

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "tests/support/files.h"

namespace nibble::classification_metrics_test {
namespace {

ConfusionMatrix matrix_of(const std::vector<std::vector<std::uint64_t>>& counts) {
  ConfusionMatrix matrix(counts.size());
  for (std::size_t actual = 0; actual < counts.size(); ++actual) {
    for (std::size_t predicted = 0; predicted < counts.size(); ++predicted) {
      matrix.add(actual, predicted, counts[actual][predicted]);
    }
  }
  return matrix;
}

TEST(ConfusionMatrix, HasTheMetricsOfTwoLabels) {
  // 15 true positives, 5 false negatives, 7 false positives, 73 true negatives.
  const auto matrix = matrix_of({{73, 7}, {5, 15}});
  EXPECT_EQ(matrix.rows_of(0), 80);
  EXPECT_EQ(matrix.predictions_of(1), 22);
  EXPECT_DOUBLE_EQ(matrix.accuracy(), 0.88);
  EXPECT_DOUBLE_EQ(matrix.precision(1), 15.0 / 22);
  EXPECT_DOUBLE_EQ(matrix.recall(1), 15.0 / 20);
  EXPECT_DOUBLE_EQ(matrix.f1(1), 30.0 / 42);
  EXPECT_DOUBLE_EQ(matrix.mcc(), (15.0 * 73 - 7 * 5) / std::sqrt(22.0 * 20 * 80 * 78));
  EXPECT_DOUBLE_EQ(matrix.mcc(), 0.6397160282004796);  // scikit-learn
}

TEST(ConfusionMatrix, HasScikitLearnsMetricsOfFourLabels) {
  const auto matrix = matrix_of({{11, 0, 1, 2}, {5, 7, 0, 0}, {6, 3, 9, 1}, {7, 1, 0, 7}});
  EXPECT_DOUBLE_EQ(matrix.accuracy(), 0.5666666666666667);
  const double precision[] = {0.3793103448275862, 0.6363636363636364, 0.9, 0.7};
  const double recall[] = {0.7857142857142857, 0.5833333333333334, 0.47368421052631576, 0.4666666666666667};
  const double f1[] = {0.5116279069767442, 0.6086956521739131, 0.6206896551724138, 0.56};
  for (std::size_t label = 0; label < 4; ++label) {
    EXPECT_DOUBLE_EQ(matrix.precision(label), precision[label]);
    EXPECT_DOUBLE_EQ(matrix.recall(label), recall[label]);
    EXPECT_DOUBLE_EQ(matrix.f1(label), f1[label]);
  }
  EXPECT_DOUBLE_EQ(matrix.macro_f1(), 0.5752533035807678);
  EXPECT_DOUBLE_EQ(matrix.mcc(), 0.45510182382593584);
}

TEST(ConfusionMatrix, TakesAQuotientByZeroAsZero) {
  const auto one_answer = matrix_of({{3, 0}, {2, 0}});
  EXPECT_EQ(one_answer.precision(1), 0);
  EXPECT_EQ(one_answer.f1(1), 0);
  EXPECT_EQ(one_answer.mcc(), 0);
  const ConfusionMatrix none(3);
  EXPECT_EQ(none.accuracy(), 0);
  EXPECT_EQ(none.macro_f1(), 0);
  EXPECT_EQ(none.mcc(), 0);
  EXPECT_EQ(matrix_of({{4, 0}, {0, 1}}).mcc(), 1);
  EXPECT_EQ(matrix_of({{0, 4}, {1, 0}}).mcc(), -1);
}

double mcc_at(double threshold, const std::vector<double>& differences, const std::vector<std::uint8_t>& positive) {
  ConfusionMatrix matrix(2);
  for (std::size_t i = 0; i < differences.size(); ++i) matrix.add(positive[i], differences[i] > threshold);
  return matrix.mcc();
}

TEST(BestThreshold, LiesBetweenTheKinds) {
  EXPECT_EQ(best_threshold({{-3.0, -1.0, 4.0, 6.0}}, {{0, 0, 1, 1}}), 1.5);
  EXPECT_EQ(best_threshold({{6.0, 2.0, 4.0, 1.0}}, {{1, 0, 1, 0}}), 3.0);
  // Both 1.5 and 3.5 call one row wrong, as often; the nearer to 0 is taken.
  EXPECT_EQ(best_threshold({{1.0, 2.0, 3.0, 4.0}}, {{0, 1, 0, 1}}), 1.5);
}

TEST(BestThreshold, OfRowsThatTellNothingIsAtTheEdge) {
  EXPECT_EQ(best_threshold({{2.0, 2.0, 2.0}}, {{1, 0, 1}}), 1.0);
  EXPECT_EQ(best_threshold({{-5.0}}, {{0}}), -4.0);
  test::expect_error<Error>([] { best_threshold({}, {}); }, "0 differences");
}

TEST(BestThreshold, HasTheLargestMcc) {
  Rng rng(3);
  std::vector<double> differences;
  std::vector<std::uint8_t> positive;
  for (int i = 0; i < 300; ++i) {
    positive.push_back(rng.below(4) == 0);
    differences.push_back(std::round(10 * (rng.normal() + 1.5f * positive.back())) / 10);  // many equal ones
  }
  const double best = mcc_at(best_threshold(differences, positive), differences, positive);
  EXPECT_GT(best, 0.4);
  for (const double threshold : differences) EXPECT_GE(best, mcc_at(threshold, differences, positive));
}

}  // namespace
}  // namespace nibble::classification_metrics_test
