#pragma once

#include "nibble/model/model.h"
#include "nibble/train/run_data.h"

#include <functional>
#include <vector>

namespace nibble {

struct RowLoss {
  std::uint64_t row = 0;  // line of the file, from 1
  double loss = 0;        // mean over the row's trained tokens
  std::uint64_t tokens = 0, correct = 0;  // trained ones
};

struct Evaluation {
  double loss = 0;  // mean over all trained tokens
  double accuracy = 0;
  std::uint64_t tokens = 0;
  std::vector<RowLoss> rows;
};

// The losses of a set's examples, each batch one forward pass. `progress` hears the part that is done.
Evaluation evaluate(Model& model, const ExampleSet& set, std::uint32_t batch_size,
                    const std::function<void(double)>& progress = {});

}  // namespace nibble
