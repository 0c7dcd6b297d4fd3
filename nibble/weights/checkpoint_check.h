#pragma once

#include "nibble/weights/bnb.h"
#include "nibble/weights/config.h"

namespace nibble {

struct BaseTensor {
  std::string name;
  Shape shape;

  std::uint64_t numel() const;
};

// Every tensor that a checkpoint of this config must have; lm_head.weight only where it is not tied.
std::vector<BaseTensor> base_tensors(const ModelConfig& config);

// Whether a tensor is the router of a mixture of experts.
bool is_router(std::string_view name);
// Whether a tensor is a matrix of a layer: neither embedding nor head, norm, bias or router.
bool is_projection(std::string_view name, const Shape& shape);

// What bitsandbytes has made of a tensor; empty where it is stored as it is. Of projections and routers alone: embedding, head and norms are
// read as they are. DataError as bnb_matrix.
std::optional<BnbMatrix> quantised(const Checkpoint& checkpoint, const BaseTensor& tensor);

// Compares a checkpoint with its config before anything is loaded. DataError names file, tensor, expected and found
// shape or type, or what is missing; tensors that no one needs are said through the log.
void check_checkpoint(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace nibble
