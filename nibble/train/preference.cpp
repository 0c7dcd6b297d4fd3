#include "nibble/train/preference.h"

#include "nibble/base/error.h"

namespace nibble {
namespace {

PreferenceStatistics& operator+=(PreferenceStatistics& sums, const PreferenceStatistics& pair) {
  sums.loss += pair.loss;
  sums.chosen_nll += pair.chosen_nll;
  sums.chosen_logps += pair.chosen_logps;
  sums.rejected_logps += pair.rejected_logps;
  sums.chosen_reward += pair.chosen_reward;
  sums.rejected_reward += pair.rejected_reward;
  sums.preferred += pair.preferred;
  return sums;
}

// Hears each batch of a set with the statistics of its pairs.
using BatchListener = std::function<void(const data::Batch&, const std::vector<PreferenceStatistics>&)>;

struct Pass {
  LossSettings settings;
  bool with_adapter;
};

void forward_pairs(Model& model, const ExampleSet& set, const Pass& pass, std::uint32_t batch_size,
                   const BatchListener& listener, const std::function<void(double)>& progress) {
  const auto batches = evaluation_batches(set, batch_size);
  gpu::Recorder recorder(model.device());
  for (std::size_t i = 0; i < batches.size(); ++i) {
    const data::Batch batch = set.batch(batches[i]);
    const auto pairs = static_cast<std::uint32_t>(batch.rows.size());
    const DeviceStream stream = model.upload(recorder, stream_of(batch));
    Preference op = preference_of(pass.settings, stream);
    op.loss = (pass.with_adapter ? model.loss(recorder, stream) : model.base_loss(recorder, stream)).loss;
    op.statistics = model.device().tensor(DType::f32, {pairs, preference_statistics}, "pair statistics");
    record(recorder, op);
    recorder.submit();
    listener(batch, model.device().read<PreferenceStatistics>(op.statistics));
    if (progress) progress(static_cast<double>(i + 1) / static_cast<double>(batches.size()));
  }
}

}  // namespace

Preference preference_of(const LossSettings& settings, const DeviceStream& stream) {
  return {.kind = settings.kind == TrainLoss::orpo ? PreferenceLoss::orpo : PreferenceLoss::dpo, .sides = stream.sides,
          .reference = settings.kind == TrainLoss::dpo ? stream.reference : Tensor{},
          .beta = static_cast<float>(settings.beta)};
}

PreferenceRecord mean_of(const PreferenceStatistics& sums, std::uint64_t pairs, std::uint64_t chosen_tokens) {
  const auto mean = [&](float sum) { return double{sum} / static_cast<double>(pairs); };
  const double chosen = mean(sums.chosen_reward), rejected = mean(sums.rejected_reward);
  return {.rewards_chosen = chosen, .rewards_rejected = rejected, .rewards_accuracies = mean(sums.preferred),
          .rewards_margins = chosen - rejected, .logps_chosen = mean(sums.chosen_logps),
          .logps_rejected = mean(sums.rejected_logps),
          .nll_loss = double{sums.chosen_nll} / static_cast<double>(chosen_tokens)};
}

double mean_loss(TrainLoss kind, const PreferenceStatistics& sums, std::uint64_t pairs, std::uint64_t chosen_tokens) {
  const double of_pairs = double{sums.loss} / static_cast<double>(pairs);
  return kind == TrainLoss::orpo ? of_pairs + double{sums.chosen_nll} / static_cast<double>(chosen_tokens) : of_pairs;
}

std::vector<float> reference_logps(Model& model, const ExampleSet& set, std::uint32_t batch_size,
                                   const std::function<void(double)>& progress) {
  std::vector<float> logps;
  const auto add = [&](const data::Batch&, const std::vector<PreferenceStatistics>& pairs) {
    for (const auto& pair : pairs) logps.insert(logps.end(), {pair.chosen_logps, pair.rejected_logps});
  };
  forward_pairs(model, set, {.settings = {.kind = TrainLoss::dpo}, .with_adapter = false}, batch_size, add, progress);
  return logps;
}

PairEvaluation evaluate_pairs(Model& model, const ExampleSet& set, const LossSettings& settings, std::uint32_t batch_size,
                              const std::function<void(double)>& progress) {
  check(settings.kind != TrainLoss::dpo || set.reference.size() == 2 * set.examples.size(), "evaluate",
        "There are {} log-probabilities of the reference for {} pairs.", set.reference.size(), set.examples.size());
  PairEvaluation result;
  PreferenceStatistics sums{};
  std::uint64_t chosen_tokens = 0;
  const auto add = [&](const data::Batch& batch, const std::vector<PreferenceStatistics>& pairs) {
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      result.pairs.push_back({.row = batch.rows[i], .statistics = pairs[i]});
      sums += pairs[i];
    }
    chosen_tokens += chosen_labels(batch);
    result.tokens += batch.labels.size();
  };
  forward_pairs(model, set, {.settings = settings, .with_adapter = true}, batch_size, add, progress);
  result.loss = mean_loss(settings.kind, sums, result.pairs.size(), chosen_tokens);
  result.mean = mean_of(sums, result.pairs.size(), chosen_tokens);
  return result;
}

}  // namespace nibble
