#pragma once

#include "nibble/weights/config.h"
#include "nibble/io/checkpoint.h"

namespace nibble {

// transformers 5 computes with all experts of a layer in two tensors, and save_pretrained(save_original_format=False) writes them so:
// "mlp.experts.gate_up_proj" (experts, 2 * intermediate, hidden), each expert's gate above its up, and "mlp.experts.down_proj" (experts,
// hidden, intermediate). Puts each expert's matrices in their place, by the names of files that have them one by one; nothing is held.
// DataError names file and tensor where one is of another shape or type, or its experts are there one by one too.
void split_experts(Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace nibble
