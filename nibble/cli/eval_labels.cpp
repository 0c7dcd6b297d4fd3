#include "nibble/cli/eval_labels.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "nibble/base/error.h"
#include "nibble/cli/terminal.h"
#include "nibble/io/json.h"
#include "nibble/report/progress.h"
#include "nibble/train/token_choice.h"

namespace nibble::cli {
namespace {

const std::map<std::string, LossNormalization> normalizations{
    {"none", LossNormalization::none}, {"tokens", LossNormalization::tokens}, {"bytes", LossNormalization::bytes}};

std::size_t index_of(const std::vector<std::string>& labels, const std::string& label) {
  const auto at = std::find(labels.begin(), labels.end(), label);
  check<UsageError>(at != labels.end(), "--positive", "\"{}\" is none of the labels {}.", label,
                    fmt::join(labels, ", "));
  return static_cast<std::size_t>(at - labels.begin());
}

// What the rows were judged to be.
struct Outcome {
  const std::vector<std::string>& labels;
  std::vector<LabelScores> rows;
  std::vector<std::size_t> predicted;
  ConfusionMatrix matrix{labels.size()};
  std::optional<PositiveLabel> positive;
  std::uint64_t over_long = 0, bad_rows = 0;  // left out
};

void print_rows(const Outcome& outcome) {
  for (std::size_t i = 0; i < outcome.rows.size(); ++i) {
    const auto& row = outcome.rows[i];
    Json scores = Json::object();
    for (std::size_t label = 0; label < row.scores.size(); ++label) scores[outcome.labels[label]] = row.scores[label];
    fmt::print("{}\n", write_json_line({{"row", row.line},
                                        {"label", outcome.labels[row.label]},
                                        {"predicted", outcome.labels[outcome.predicted[i]]},
                                        {"scores", scores}}));
  }
}

void print_json(const Outcome& outcome) {
  const auto& matrix = outcome.matrix;
  Json counts = Json::array(), per_label = Json::object();
  for (std::size_t actual = 0; actual < outcome.labels.size(); ++actual) {
    Json row = Json::array();
    for (std::size_t predicted = 0; predicted < outcome.labels.size(); ++predicted) {
      row.push_back(matrix.count(actual, predicted));
    }
    counts.push_back(row);
    per_label[outcome.labels[actual]] = {{"rows", matrix.rows_of(actual)},
                                         {"precision", matrix.precision(actual)},
                                         {"recall", matrix.recall(actual)},
                                         {"f1", matrix.f1(actual)}};
  }
  Json summary{{"rows", outcome.rows.size()},   {"over_long_rows", outcome.over_long}, {"bad_rows", outcome.bad_rows},
               {"accuracy", matrix.accuracy()}, {"macro_f1", matrix.macro_f1()},       {"mcc", matrix.mcc()},
               {"labels", outcome.labels},      {"confusion_matrix", counts},          {"per_label", per_label}};
  if (outcome.positive) {
    summary["positive"] = outcome.labels[outcome.positive->label];
    summary["threshold"] = outcome.positive->threshold;
  }
  fmt::print("{}\n", write_json_line(summary));
}

void print_text(const Outcome& outcome) {
  const auto& matrix = outcome.matrix;
  fmt::print("accuracy {:.2f}%  macro F1 {:.4f}  MCC {:.4f}  ({} rows)\n", 100 * matrix.accuracy(), matrix.macro_f1(),
             matrix.mcc(), grouped(outcome.rows.size()));
  if (outcome.over_long + outcome.bad_rows > 0) {
    fmt::print("left out: {} over-long rows, {} bad ones\n", grouped(outcome.over_long), grouped(outcome.bad_rows));
  }
  if (outcome.positive) {
    fmt::print("\"{}\" where its score is lower by more than {:.4f}, as fixed on the validation file\n",
               printable(outcome.labels[outcome.positive->label]), outcome.positive->threshold);
  }
  std::vector<std::string> names;
  std::size_t width = 9;
  for (const auto& label : outcome.labels) {
    names.push_back(printable(label));
    width = std::max(width, names.back().size());
  }
  fmt::print("\n{:<{}}  {:>9}  {:>9}  {:>9}  {:>9}\n", "label", width, "rows", "precision", "recall", "F1");
  for (std::size_t label = 0; label < names.size(); ++label) {
    fmt::print("{:<{}}  {:>9}  {:>9.4f}  {:>9.4f}  {:>9.4f}\n", names[label], width, grouped(matrix.rows_of(label)),
               matrix.precision(label), matrix.recall(label), matrix.f1(label));
  }
  fmt::print("\n{:<{}}", "predicted", width);
  for (const auto& name : names) fmt::print("  {:>{}}", name, width);
  for (std::size_t actual = 0; actual < names.size(); ++actual) {
    fmt::print("\n{:<{}}", names[actual], width);
    for (std::size_t predicted = 0; predicted < names.size(); ++predicted) {
      fmt::print("  {:>{}}", grouped(matrix.count(actual, predicted)), width);
    }
  }
  fmt::print("\n");
}

}  // namespace

void LabelFlags::add_to(CLI::App& verb) {
  auto* group = verb.add_option_group("Classification: rows {\"input\", \"label\"}");
  auto* given =
      group
          ->add_option("--labels", labels,
                       "Judge each row by which of these answers has the lowest loss, as spam,ham; auto takes the "
                       "labels of the file")
          ->delimiter(',');
  group
      ->add_option("--normalize", normalize,
                   "Divide a label's loss by 1 (none), its tokens or its bytes, so that long labels stand a chance")
      ->check(CLI::IsMember({"none", "tokens", "bytes"}))
      ->capture_default_str()
      ->needs(given);
  auto* on =
      group
          ->add_option("--valid", valid,
                       "Of two labels: predict --positive where its score is lower than the other's by more than a "
                       "threshold, the one with the largest MCC on this file")
          ->needs(given);
  on->needs(group->add_option("--positive", positive, "Which of two labels the threshold is for")->needs(on));
}

void LabelFlags::check(const TrainOptions& options) const {
  if (!used()) return;
  const bool usable = options.overflow == data::Overflow::error || options.overflow == data::Overflow::drop;
  nibble::check<UsageError>(usable, "--overflow",
                            "A row with labels cannot be {}: its end is what is judged. Choose error or drop.",
                            options.overflow == data::Overflow::cut ? "cut" : "split");
  nibble::check<UsageError>(options.data.files().size() == 1, "--labels", "One file is judged at a time; {} were given.",
                            options.data.files().size());
  nibble::check<UsageError>(!options.form || options.form == data::RowForm::classification, "--format",
                            "Rows for --labels have the form classification.");
}

LabelledData::LabelledData(const LabelFlags& flags, const TrainOptions& options) {
  const RunData texts = open_tokenizer(options);
  const data::RowEncoder encoder(texts.tokenizer, texts.chat_template ? &*texts.chat_template : nullptr, data::TrainOn::assistant,
                                 text::OrderedJson::object(), options.think, options.system);
  CandidateOptions reading{.labels = flags.labels,
                           .max_length = options.max_length,
                           .drop_over_long = options.overflow == data::Overflow::drop,
                           .skip_bad_rows = options.skip_bad_rows,
                           .map = options.map};
  if (flags.labels == std::vector<std::string>{"auto"}) reading.labels.clear();
  data = read_candidates(options.data.files().front().path, encoder, reading);
  if (flags.valid.empty()) return;
  nibble::check<UsageError>(data.labels.size() == 2, "--valid", "A threshold is for two labels; there are {}.",
                            data.labels.size());
  index_of(data.labels, flags.positive);
  reading.labels = data.labels;
  valid = read_candidates(flags.valid, encoder, reading);
}

BatchRoom LabelledData::room(std::uint32_t rows) const {
  BatchRoom room = room_of(data, rows);
  if (!valid) return room;
  const BatchRoom other = room_of(*valid, rows);
  return {.tokens = std::max(room.tokens, other.tokens), .labels = std::max(room.labels, other.labels)};
}

void classify(Model& model, const LabelledData& data, const LabelFlags& flags, std::uint32_t batch_size,
              LabelPrinting printing, const std::function<void(double)>& progress) {
  const auto score = [&](const CandidateSet& set) {
    return score_labels(model, set, batch_size, normalizations.at(flags.normalize), progress);
  };
  Outcome outcome{.labels = data.data.labels, .over_long = data.data.over_long, .bad_rows = data.data.bad_rows};
  if (data.valid) outcome.positive = fit_threshold(score(*data.valid), index_of(outcome.labels, flags.positive));
  outcome.rows = score(data.data);
  for (const auto& row : outcome.rows) {
    outcome.predicted.push_back(outcome.positive ? outcome.positive->predict(row) : row.lowest());
    outcome.matrix.add(row.label, outcome.predicted.back());
  }
  if (printing.rows) print_rows(outcome);
  if (printing.json) {
    print_json(outcome);
  } else {
    print_text(outcome);
  }
}

}  // namespace nibble::cli
