#pragma once

#include "nibble/kernels/attention.h"

// What attention.cpp and attention_step.cpp share; nothing for others.
namespace nibble {

// The params of the attention kernels, as lib/attention.wgsl has them.
struct AttentionParams {
  std::uint32_t tokens, capacity, heads, group, first_head, first_token, last_token, more;
  float scale;
  std::uint32_t parts = 1, part_keys = 0;
  float eps = 0;
};

// How a query's keys are cut: into parts of whole tiles, as many as there is room for, but where one workgroup is done with all
// of them as soon as a second pass would begin. A processor is occupied by few.
struct DecodeCut {
  std::uint32_t parts, keys;  // keys of each
};
DecodeCut decode_cut(const gpu::Device& device, std::uint32_t queries, std::uint32_t most_keys, std::uint32_t least_part_keys);

// Query heads of a workgroup, of a group that shares a key head.
std::uint32_t decode_heads(std::uint32_t group);

// Throws unless the room is there.
void check_parts(const AttentionParts& parts, std::uint32_t heads, std::uint32_t head_dim);

// Puts the parts of `heads` heads together, for the tokens of the params.
struct PartsSum {
  const AttentionParts& parts;
  const AttentionParams& params;
  std::uint32_t head_dim, heads;
  Tensor o, lse;
};
void record(gpu::Recorder& recorder, const PartsSum& op);

}  // namespace nibble
