#include "nibble/train/classify.h"

#include <algorithm>
#include <cmath>

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr std::string_view where = "classify";

std::size_t length_of(const LabelledExample& row) {
  std::size_t tokens = 0;
  for (const auto& candidate : row.candidates) tokens = std::max(tokens, candidate.tokens.size());
  return tokens;
}

void check_labels(const std::vector<std::string>& labels) {
  check<UsageError>(labels.size() >= 2, "--labels", "There {} {} label{}; at least two are needed.",
                    labels.size() == 1 ? "is" : "are", labels.size(), labels.size() == 1 ? "" : "s");
  auto sorted = labels;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  check<UsageError>(twice == sorted.end(), "--labels", "The label \"{}\" is given twice.",
                    twice == sorted.end() ? "" : *twice);
}

LabelledExample encode(const data::LabelledRow& row, const std::vector<std::string>& labels,
                       const data::RowEncoder& encoder) {
  const auto right = std::find(labels.begin(), labels.end(), row.content.label);
  check<DataError>(right != labels.end(), where, "The label \"{}\" is none of the labels {}.", row.content.label,
                   fmt::join(labels, ", "));
  LabelledExample example{.line = row.line, .label = static_cast<std::size_t>(right - labels.begin())};
  data::LabelledInput candidate = row.content;
  for (const auto& label : labels) {
    candidate.label = label;
    example.candidates.push_back(encoder.encode(candidate));
  }
  return example;
}

std::span<const LabelledExample> pass_of(const CandidateSet& set, std::size_t first, std::uint32_t rows) {
  return std::span(set.rows).subspan(first, std::min<std::size_t>(rows, set.rows.size() - first));
}

double divisor(LossNormalization normalization, std::uint64_t tokens, const std::string& label) {
  switch (normalization) {
    case LossNormalization::none: return 1;
    case LossNormalization::tokens: return static_cast<double>(tokens);
    case LossNormalization::bytes: return static_cast<double>(label.size());
  }
  return 1;
}

}  // namespace

CandidateSet read_candidates(const fs::path& path, const data::RowEncoder& encoder, const CandidateOptions& options) {
  const auto file = data::read_labelled_file(path, options.skip_bad_rows, options.map);
  CandidateSet set{.labels = options.labels.empty() ? data::labels_of(file.rows) : options.labels,
                   .bad_rows = file.bad_rows};
  check_labels(set.labels);
  for (const auto& row : file.rows) {
    const auto place = fmt::format("{}, line {}", path.string(), row.line);
    LabelledExample example;
    try {
      example = encode(row, set.labels, encoder);
    } catch (const DataError& error) {
      const std::string_view what = error.what();
      fail<DataError>(place, "{}", what.substr(what.find("] ") + 2));
    }
    if (length_of(example) > options.max_length) {
      check<DataError>(
          options.drop_over_long, place,
          "The row has {} tokens with one of the labels; at most {} are allowed. Raise --max-length, or choose "
          "--overflow drop.",
          length_of(example), options.max_length);
      ++set.over_long;
      continue;
    }
    set.rows.push_back(std::move(example));
  }
  check<DataError>(!set.rows.empty(), path.string(), "No row is left: all {} are over-long.", set.over_long);
  return set;
}

BatchRoom room_of(const CandidateSet& set, std::uint32_t rows) {
  BatchRoom room;
  for (std::size_t first = 0; first < set.rows.size(); first += rows) {
    BatchRoom needed;
    for (const auto& row : pass_of(set, first, rows)) {
      for (const auto& candidate : row.candidates) {
        needed.tokens += static_cast<std::uint32_t>(candidate.tokens.size());
        needed.labels += static_cast<std::uint32_t>(std::count(candidate.trained.begin(), candidate.trained.end(), 1));
      }
    }
    room.tokens = std::max(room.tokens, needed.tokens);
    room.labels = std::max(room.labels, needed.labels);
  }
  return room;
}

std::size_t LabelScores::lowest() const {
  return static_cast<std::size_t>(std::min_element(scores.begin(), scores.end()) - scores.begin());
}

std::vector<LabelScores> score_labels(Model& model, const CandidateSet& set, std::uint32_t rows,
                                      LossNormalization normalization, const std::function<void(double)>& progress) {
  const std::size_t labels = set.labels.size();
  std::vector<LabelScores> result;
  gpu::Recorder recorder(model.device());
  for (std::size_t first = 0; first < set.rows.size(); first += rows) {
    std::vector<data::Example> candidates;
    for (const auto& row : pass_of(set, first, rows)) {
      candidates.insert(candidates.end(), row.candidates.begin(), row.candidates.end());
      result.push_back({.line = row.line, .label = row.label, .scores = std::vector<double>(labels)});
    }
    const data::Batch batch = data::make_batch(candidates);
    const DeviceStream stream = model.upload(recorder, stream_of(batch));
    const Head::Loss loss = model.loss(recorder, stream);
    recorder.submit();
    const auto losses = model.device().read<float>(loss.loss);
    std::vector<std::uint64_t> tokens(candidates.size());
    for (std::size_t i = 0; i < batch.labels.size(); ++i) {
      const std::size_t candidate = batch.row_of_label[i];
      result[first + candidate / labels].scores[candidate % labels] += losses[i];
      ++tokens[candidate];
    }
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      result[first + i / labels].scores[i % labels] /= divisor(normalization, tokens[i], set.labels[i % labels]);
    }
    if (progress) progress(static_cast<double>(result.size()) / static_cast<double>(set.rows.size()));
  }
  for (const auto& row : result) {
    check<Diverged>(
        std::all_of(row.scores.begin(), row.scores.end(), [](double score) { return std::isfinite(score); }), where,
        "The row of line {} has a loss that is not finite.", row.line);
  }
  return result;
}

PositiveLabel fit_threshold(std::span<const LabelScores> rows, std::size_t positive) {
  PositiveLabel result{.label = positive};
  std::vector<double> differences;
  std::vector<std::uint8_t> is_positive;
  for (const auto& row : rows) {
    differences.push_back(result.difference(row));
    is_positive.push_back(row.label == positive);
  }
  result.threshold = best_threshold(differences, is_positive);
  return result;
}

}  // namespace nibble
