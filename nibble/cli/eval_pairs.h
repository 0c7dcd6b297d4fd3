#pragma once

#include "nibble/model/model.h"
#include "nibble/report/progress.h"
#include "nibble/train/options.h"
#include "nibble/train/run_data.h"

namespace nibble::cli {

struct PairPrinting {
  bool rows = false, json = false;
};

// Judges the answers of pairs by the options' loss and prints loss, accuracy and margins. DPO's reference is the base alone.
void evaluate_answers(Model& model, ExampleSet& pairs, const TrainOptions& options, PairPrinting printing,
                      Progress& progress);

}  // namespace nibble::cli
