#include "nibble/report/classification_metrics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "nibble/base/error.h"

namespace nibble {
namespace {

double quotient(double a, double b) { return b == 0 ? 0 : a / b; }

}  // namespace

std::uint64_t ConfusionMatrix::rows_of(std::size_t actual) const {
  std::uint64_t sum = 0;
  for (std::size_t predicted = 0; predicted < labels_; ++predicted) sum += count(actual, predicted);
  return sum;
}

std::uint64_t ConfusionMatrix::predictions_of(std::size_t predicted) const {
  std::uint64_t sum = 0;
  for (std::size_t actual = 0; actual < labels_; ++actual) sum += count(actual, predicted);
  return sum;
}

std::uint64_t ConfusionMatrix::total() const {
  return std::accumulate(counts_.begin(), counts_.end(), std::uint64_t{0});
}

std::uint64_t ConfusionMatrix::correct() const {
  std::uint64_t sum = 0;
  for (std::size_t label = 0; label < labels_; ++label) sum += count(label, label);
  return sum;
}

double ConfusionMatrix::accuracy() const {
  return quotient(static_cast<double>(correct()), static_cast<double>(total()));
}

double ConfusionMatrix::precision(std::size_t label) const {
  return quotient(static_cast<double>(count(label, label)), static_cast<double>(predictions_of(label)));
}

double ConfusionMatrix::recall(std::size_t label) const {
  return quotient(static_cast<double>(count(label, label)), static_cast<double>(rows_of(label)));
}

double ConfusionMatrix::f1(std::size_t label) const {
  // TP + FP predictions and TP + FN rows.
  return quotient(2 * static_cast<double>(count(label, label)),
                  static_cast<double>(predictions_of(label) + rows_of(label)));
}

double ConfusionMatrix::macro_f1() const {
  double sum = 0;
  for (std::size_t label = 0; label < labels_; ++label) sum += f1(label);
  return quotient(sum, static_cast<double>(labels_));
}

double ConfusionMatrix::mcc() const {
  const auto all = static_cast<double>(total());
  double expected = 0, actual_squares = 0, predicted_squares = 0;
  for (std::size_t label = 0; label < labels_; ++label) {
    const auto actual = static_cast<double>(rows_of(label)), predicted = static_cast<double>(predictions_of(label));
    expected += actual * predicted;
    actual_squares += actual * actual;
    predicted_squares += predicted * predicted;
  }
  const double spread = std::sqrt((all * all - actual_squares) * (all * all - predicted_squares));
  return quotient(static_cast<double>(correct()) * all - expected, spread);
}

double best_threshold(std::span<const double> differences, std::span<const std::uint8_t> positive) {
  check(differences.size() == positive.size() && !differences.empty(), "best_threshold",
        "{} differences and {} labels were given.", differences.size(), positive.size());
  std::vector<std::size_t> order(differences.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return differences[a] < differences[b]; });
  const auto positives =
      static_cast<std::uint64_t>(std::count_if(positive.begin(), positive.end(), [](auto p) { return p != 0; }));
  // How many of each kind lie at or below the threshold, so are called negative.
  std::uint64_t positives_below = 0, below = 0;
  double best = 0, best_mcc = -2;
  const auto consider = [&](double threshold) {
    ConfusionMatrix matrix(2);
    const std::uint64_t negatives_below = below - positives_below, negatives = differences.size() - positives;
    matrix.add(1, 0, positives_below);
    matrix.add(1, 1, positives - positives_below);
    matrix.add(0, 0, negatives_below);
    matrix.add(0, 1, negatives - negatives_below);
    const double mcc = matrix.mcc();
    if (mcc < best_mcc || (mcc == best_mcc && std::abs(threshold) >= std::abs(best))) return;
    best = threshold;
    best_mcc = mcc;
  };
  consider(differences[order.front()] - 1);
  for (std::size_t i = 0; i < order.size(); ++i) {
    const double here = differences[order[i]];
    ++below;
    positives_below += positive[order[i]] != 0;
    if (i + 1 == order.size()) {
      consider(here + 1);
      break;
    }
    const double next = differences[order[i + 1]], middle = std::midpoint(here, next);
    if (next != here) consider(middle < next ? middle : here);
  }
  return best;
}

}  // namespace nibble
