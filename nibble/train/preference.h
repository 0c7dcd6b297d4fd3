#pragma once

#include "nibble/kernels/preference.h"
#include "nibble/model/model.h"
#include "nibble/report/records.h"
#include "nibble/train/loss.h"
#include "nibble/train/run_data.h"

#include <functional>
#include <vector>

namespace nibble {

// The operation that the settings ask for over the batch's pairs; factors, statistics and what the head gives are left out.
Preference preference_of(const LossSettings& settings, const DeviceStream& stream);

// Means over `pairs` pairs, and over the tokens of their chosen answers, from sums of their statistics.
PreferenceRecord mean_of(const PreferenceStatistics& sums, std::uint64_t pairs, std::uint64_t chosen_tokens);
// The whole loss: in ORPO with the likelihood of the chosen answers.
double mean_loss(TrainLoss kind, const PreferenceStatistics& sums, std::uint64_t pairs, std::uint64_t chosen_tokens);

// DPO's reference: the summed log-probabilities that the base alone, with its adapters switched off, gives the answers of each
// example, chosen and rejected in turn. The same bytes for the same set and batch size. `progress` hears the part that is done.
std::vector<float> reference_logps(Model& model, const ExampleSet& set, std::uint32_t batch_size,
                                   const std::function<void(double)>& progress = {});

struct PairLoss {
  std::uint64_t row = 0;  // line of the file, from 1
  PreferenceStatistics statistics{};
};

struct PairEvaluation {
  double loss = 0;
  PreferenceRecord mean;
  std::uint64_t tokens = 0;  // labels of both answers
  std::vector<PairLoss> pairs;
};

// The losses of a set of pairs, whose reference must be there for DPO; each batch is one forward pass.
PairEvaluation evaluate_pairs(Model& model, const ExampleSet& set, const LossSettings& settings, std::uint32_t batch_size,
                              const std::function<void(double)>& progress = {});

}  // namespace nibble
