#include "nibble/cli/eval_pairs.h"

#include "nibble/base/error.h"
#include "nibble/io/json.h"
#include "nibble/train/preference.h"

#include <fmt/format.h>

#include <cmath>

namespace nibble::cli {
namespace {

void print_pairs(const PairEvaluation& result, const ExampleSet& set) {
  const bool several = set.file->files().size() > 1;
  for (std::size_t i = 0; i < result.pairs.size(); ++i) {
    const PreferenceStatistics& s = result.pairs[i].statistics;
    Json line{{"row", result.pairs[i].row}, {"loss", s.loss}, {"rewards/chosen", s.chosen_reward},
              {"rewards/rejected", s.rejected_reward}, {"logps/chosen", s.chosen_logps}, {"logps/rejected", s.rejected_logps}};
    if (several) line["file"] = set.file->file_name(set.examples[i]);
    fmt::print("{}\n", write_json_line(line));
  }
}

void print_summary(const PairEvaluation& result, std::uint64_t bad_rows, bool json) {
  const PreferenceRecord& mean = result.mean;
  if (json) {
    fmt::print("{}\n", write_json_line({{"eval_loss", result.loss},
                                        {"rewards/chosen", mean.rewards_chosen},
                                        {"rewards/rejected", mean.rewards_rejected},
                                        {"rewards/accuracies", mean.rewards_accuracies},
                                        {"rewards/margins", mean.rewards_margins},
                                        {"logps/chosen", mean.logps_chosen},
                                        {"logps/rejected", mean.logps_rejected},
                                        {"nll_loss", mean.nll_loss},
                                        {"rows", result.pairs.size()},
                                        {"bad_rows", bad_rows},
                                        {"tokens", result.tokens}}));
  } else {
    fmt::print("eval_loss {:.6f}  accuracy {:.2f}%  margin {:.4f}  rewards {:+.4f} against {:+.4f}  ", result.loss,
               100 * mean.rewards_accuracies, mean.rewards_margins, mean.rewards_chosen, mean.rewards_rejected);
    fmt::print("({} pairs, {} trained tokens)\n", grouped(result.pairs.size()), grouped(result.tokens));
  }
}

}  // namespace

void evaluate_answers(Model& model, ExampleSet& pairs, const TrainOptions& options, PairPrinting printing,
                      Progress& progress) {
  if (options.loss.kind == TrainLoss::dpo) {
    pairs.reference = reference_logps(model, pairs, options.batch_size,
                                      [&](double done) { progress.part("Reading the pairs with the base alone", done); });
  }
  const PairEvaluation result = evaluate_pairs(model, pairs, options.loss, options.batch_size,
                                               [&](double done) { progress.part("Evaluating", done); });
  check<Diverged>(std::isfinite(result.loss), options.data.text(), "The loss is {}.", result.loss);
  if (printing.rows) print_pairs(result, pairs);
  print_summary(result, pairs.file->counts().bad_rows, printing.json);
}

}  // namespace nibble::cli
