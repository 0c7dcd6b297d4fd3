#include "nibble/model/preference_parity.h"

#include "nibble/base/error.h"
#include "nibble/model/golden.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

// The pairs of a golden file on the device.
struct GoldenPairs {
  GoldenRows rows;
  DeviceStream stream;
  std::uint32_t count;
  Tensor sides, reference, statistics;
  std::uint32_t chosen_labels = 0;

  GoldenPairs(Model& model, gpu::Recorder& recorder, const SafetensorsFile& golden)
      : rows(read_golden_pairs(golden)),
        stream(model.upload(recorder, rows.stream())),
        count(static_cast<std::uint32_t>(rows.sides.size() / 2)),
        sides(model.device().tensor<std::uint32_t>(DType::u32, {2 * count + 1}, rows.sides, "sides")),
        statistics(model.device().tensor(DType::f32, {count, preference_statistics}, "pair statistics")) {
    for (std::uint32_t pair = 0; pair < count; ++pair) chosen_labels += rows.sides[2 * pair + 1] - rows.sides[2 * pair];
  }
};

// Summed log-probabilities, those of chosen and rejected answers in turn.
std::vector<float> logps_of(gpu::Device& device, const GoldenPairs& pairs) {
  std::vector<float> logps;
  for (const auto& pair : device.read<PreferenceStatistics>(pairs.statistics)) {
    logps.insert(logps.end(), {pair.chosen_logps, pair.rejected_logps});
  }
  return logps;
}

double worst_error(std::span<const float> logps, const SafetensorsFile& golden, const std::string& name) {
  double worst = 0;
  for (const std::size_t side : {0, 1}) {
    const std::string tensor = (side == 0 ? "chosen." : "rejected.") + name;
    const auto reference = golden.read_as_f32(tensor);
    check<DataError>(2 * reference.size() == logps.size(), golden.path().string(), "\"{}\" has {} values; there are {} pairs.",
                     tensor, reference.size(), logps.size() / 2);
    for (std::size_t pair = 0; pair < reference.size(); ++pair) {
      const double error = std::fabs(double{logps[2 * pair + side]} / reference[pair] - 1);
      worst = std::isfinite(error) ? std::max(worst, error) : std::numeric_limits<double>::infinity();
    }
  }
  return worst;
}

ParityReport compare_loss(Model& model, const GoldenPairs& pairs, PreferenceLoss kind, const SafetensorsFile& golden) {
  const bool dpo = kind == PreferenceLoss::dpo;
  const std::string prefix = dpo ? "dpo." : "orpo.";
  const Preference preference{.kind = kind, .sides = pairs.sides, .reference = dpo ? pairs.reference : Tensor{},
                              .statistics = pairs.statistics, .beta = golden.read_as_f32(dpo ? "dpo.beta" : "orpo.lambda").at(0),
                              .pair_factor = 1.0f / static_cast<float>(pairs.count),
                              .token_factor = dpo ? 0.0f : 1.0f / static_cast<float>(pairs.chosen_labels)};
  gpu::Recorder recorder(model.device());
  recorder.clear(model.lora()->grads);
  if (model.tokens()) model.tokens()->clear_gradients(recorder);
  model.loss_and_gradients(recorder, pairs.stream, {.preference = &preference});
  recorder.submit();
  ParityReport report;
  for (const auto& pair : model.device().read<PreferenceStatistics>(pairs.statistics)) {
    report.loss += double{pair.loss} * double{preference.pair_factor} + double{pair.chosen_nll} * double{preference.token_factor};
  }
  report.reference_loss = golden.read_as_f32(prefix + "loss").at(0);
  report.loss_error = std::fabs(report.loss - report.reference_loss) / std::fabs(report.reference_loss);
  report.gradients = compare_gradients(model, {}, golden, prefix + "grad.");
  return report;
}

}  // namespace

bool PreferenceParity::passes(const ParityBars& bars) const {
  ParityBars dpo_bars = bars;
  dpo_bars.loss_error = bars.dpo_loss_error;
  return dpo.passes(dpo_bars) && orpo.passes(bars) && logps_error <= bars.loss_error;
}

PreferenceParity compare_preferences_with_golden(Model& model, const SafetensorsFile& golden) {
  check(model.lora() && model.lora()->grads, "verify", "The model has no trainable adapter.");
  gpu::Recorder recorder(model.device());
  GoldenPairs pairs(model, recorder, golden);
  record(recorder, Preference{.loss = model.base_loss(recorder, pairs.stream).loss, .sides = pairs.sides,
                              .statistics = pairs.statistics});
  recorder.submit();
  const auto base = logps_of(model.device(), pairs);
  pairs.reference = model.device().tensor<float>(DType::f32, {2 * pairs.count}, base, "reference");
  PreferenceParity report;
  report.dpo = compare_loss(model, pairs, PreferenceLoss::dpo, golden);
  const auto logps = logps_of(model.device(), pairs);  // sums in DPO's statistics, means in ORPO's
  report.orpo = compare_loss(model, pairs, PreferenceLoss::orpo, golden);
  report.logps_error = std::max(worst_error(base, golden, "reference_logps"), worst_error(logps, golden, "logps"));
  return report;
}

}  // namespace nibble
