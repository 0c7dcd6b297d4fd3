#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nibble/data/labelled_rows.h"
#include "nibble/data/row_encoder.h"
#include "nibble/model/model.h"
#include "nibble/report/classification_metrics.h"
#include "nibble/train/run_data.h"

// Classification by loss: each label is put in the answer's place, and the one that the model finds least surprising is
// its prediction.
namespace nibble {

// What a candidate's loss is divided by: nothing (the model's probability of the whole answer), its tokens, or the
// bytes of the label. The last two keep long labels from losing for their length alone.
enum class LossNormalization : std::uint8_t { none, tokens, bytes };

struct LabelledExample {
  std::uint64_t line = 0;                 // of the file, from 1
  std::size_t label = 0;                  // index of the right one
  std::vector<data::Example> candidates;  // the row with each label in turn
};

struct CandidateSet {
  std::vector<std::string> labels;
  std::vector<LabelledExample> rows;
  std::uint64_t over_long = 0, bad_rows = 0;  // left out
};

struct CandidateOptions {
  std::vector<std::string> labels;  // at least two; none: those of the file
  std::uint32_t max_length = 1024;  // in tokens, of each candidate
  bool drop_over_long = false;      // leaves such rows out instead of throwing
  bool skip_bad_rows = false;
  data::ColumnMap map = {};
};

// Reads and encodes a file; all of it stays in memory. DataError names file and line of a row that cannot be used, has
// a label that is none of `labels`, or is too long; UsageError where there are fewer than two labels or one comes
// twice.
CandidateSet read_candidates(const fs::path& path, const data::RowEncoder& encoder, const CandidateOptions& options);

// Room that the largest pass over `rows` rows needs.
BatchRoom room_of(const CandidateSet& set, std::uint32_t rows);

struct LabelScores {
  std::uint64_t line = 0;
  std::size_t label = 0;       // the right one
  std::vector<double> scores;  // a label each, lower is better

  std::size_t lowest() const;  // the first among equals
};

// The scores of each row, `rows` rows with all their candidates a pass. `progress` hears the part that is done.
std::vector<LabelScores> score_labels(Model& model, const CandidateSet& set, std::uint32_t rows,
                                      LossNormalization normalization,
                                      const std::function<void(double)>& progress = {});

// With two labels: one of them, and how far its score must lie below the other's for it to be predicted.
struct PositiveLabel {
  std::size_t label = 0;
  double threshold = 0;

  double difference(const LabelScores& row) const { return row.scores[1 - label] - row.scores[label]; }
  std::size_t predict(const LabelScores& row) const { return difference(row) > threshold ? label : 1 - label; }
};

// The threshold that gives these rows the largest MCC; fix it on other rows than those it is judged by.
PositiveLabel fit_threshold(std::span<const LabelScores> rows, std::size_t positive);

}  // namespace nibble
