#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/weights/lora_state.h"
#include "nibble/weights/peft.h"

// A fine-tune in one JSON file: the adapters of all layers with their moments, and where the run stood.
//   {step, rank, alpha, loss, hidden_size, num_layers, layers: [{q, k, v, o, gate, up, down}]}
// with each projection {a, b, m_a, v_a, m_b, v_b, rank, in_dim, out_dim}; one that is not adapted is left out.
namespace nibble {

// What the file says besides its layers.
struct JsonCheckpointHeader {
  std::uint64_t step = 0;
  std::uint32_t rank = 0;
  double alpha = 0;
  double loss = 0;
  std::uint32_t hidden_size = 0;
};

struct JsonCheckpoint {
  JsonCheckpointHeader header;
  std::vector<LoraLayer> layers;
};

// Writes folder/lora-checkpoint-step{step}.json as a stream and returns its path; the file appears whole or not at all.
// Every number reads back bit for bit. Before anything is written, an Error names layer, projection, matrix and index
// of a value that is not finite, or the matrix that is not of its projection's shape.
fs::path save_json_checkpoint(const fs::path& folder, const JsonCheckpointHeader& header,
                              std::span<const LoraLayer> layers);

// Reads such a file, keys in any order, into adapters of the model and of the rank and target modules of `lora`; beside
// these it holds 64 KiB, whatever the file claims. DataError names the place, with what is found and expected: another
// layer count, hidden size, rank or shape, a key that is missing, unknown or twice there, a value that is no finite
// number. Alpha is the file's own: whether it may differ from that of `lora` is for the caller to decide.
JsonCheckpoint load_json_checkpoint(const fs::path& path, const ModelConfig& model, const LoraConfig& lora);

}  // namespace nibble
