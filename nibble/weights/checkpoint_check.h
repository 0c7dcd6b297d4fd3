#pragma once

#include "nibble/io/checkpoint.h"
#include "nibble/weights/config.h"

namespace nibble {

struct BaseTensor {
  std::string name;
  Shape shape;
};

// Every tensor that a checkpoint of this config must have; lm_head.weight only where it is not tied.
std::vector<BaseTensor> base_tensors(const ModelConfig& config);

// Compares a checkpoint with its config before anything is loaded. DataError names file, tensor, expected and found
// shape or type, or what is missing; tensors that no one needs are said through the log.
void check_checkpoint(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace nibble
