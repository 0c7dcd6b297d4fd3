#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

// How often each label was called what. A quotient by zero counts as 0, as in scikit-learn.
class ConfusionMatrix {
 public:
  explicit ConfusionMatrix(std::size_t labels) : labels_(labels), counts_(labels * labels) {}

  void add(std::size_t actual, std::size_t predicted, std::uint64_t rows = 1) {
    counts_[actual * labels_ + predicted] += rows;
  }

  std::size_t labels() const { return labels_; }
  std::uint64_t count(std::size_t actual, std::size_t predicted) const { return counts_[actual * labels_ + predicted]; }
  std::uint64_t rows_of(std::size_t actual) const;
  std::uint64_t predictions_of(std::size_t predicted) const;
  std::uint64_t total() const;

  double accuracy() const;
  double precision(std::size_t label) const;
  double recall(std::size_t label) const;
  // Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN).
  double f1(std::size_t label) const;
  // Mean over all labels, whether they occur or not.
  double macro_f1() const;
  // Correlation of what is and what was predicted, from -1 to 1: Matthews' coefficient for two labels, R_K for more
  // (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006).
  double mcc() const;

 private:
  std::uint64_t correct() const;

  std::size_t labels_;
  std::vector<std::uint64_t> counts_;  // (actual, predicted)
};

// A row is called positive where its difference lies above a threshold. This is the threshold with the largest MCC: in
// the middle of two neighbouring differences, or beyond the outermost; among equals the one nearest to 0. `differences`
// must be finite and as many as `positive`.
double best_threshold(std::span<const double> differences, std::span<const std::uint8_t> positive);

}  // namespace nibble
