#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "nibble/train/classify.h"
#include "nibble/train/options.h"

namespace nibble::cli {

// The options of `nibble eval` for rows that have a label each.
struct LabelFlags {
  std::vector<std::string> labels;  // none: rows are judged by their loss alone
  std::string normalize = "none", positive, valid;

  void add_to(CLI::App& verb);
  bool used() const { return !labels.empty(); }
  // Throws UsageError where options do not go together.
  void check(const TrainOptions& options) const;
};

// Rows as candidates: the file that is judged, and the one that fixes the threshold.
struct LabelledData {
  CandidateSet data;
  std::optional<CandidateSet> valid;

  LabelledData(const LabelFlags& flags, const TrainOptions& options);
  BatchRoom room(std::uint32_t rows) const;
};

struct LabelPrinting {
  bool rows = false, json = false;
};

// Scores all rows and prints how well the labels are told apart.
void classify(Model& model, const LabelledData& data, const LabelFlags& flags, std::uint32_t batch_size,
              LabelPrinting printing, const std::function<void(double)>& progress);

}  // namespace nibble::cli
