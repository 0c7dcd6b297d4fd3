#pragma once

#include "nibble/kernels/nf4.h"

#include <array>
#include <optional>

namespace nibble {

// Whole layers for one new token in one dispatch: for each what Nf4Vec, AttentionStep and Nf4VecSwiGlu do in five, and LoraVec in four more.
// f32 arithmetic, but by pairs f16 for sums of up to sixteen products; sums in an order that the plan fixes.
//
// Its workgroups wait for each other's results, so all of them must run at one time, which WebGPU does not promise. How many do is
// counted on the device (resident_workgroups). Where one waits in vain nevertheless, it gives up after a while: the output is NaN,
// trouble() is not zero, and nothing that follows waits again.
struct LayerStepShape {
  std::uint32_t hidden, intermediate;  // multiples of 64
  std::uint32_t heads, key_heads, head_dim;
  bool head_norm = false, bias = false;
  std::uint32_t rank = 0;  // of the adapters; 0: none
};

// How NF4 codes are looked up.
enum class StepLookups {
  in_lanes,  // each in the lanes of a subgroup, multiplied in f32 (lib/step_lanes.wgsl)
  in_pairs,  // both of a byte in workgroup memory, multiplied in f16 (lib/step_pairs.wgsl); in lanes with LoRA, or without f16 or room
  fastest,   // in pairs where the layer is large
};

// How a shape is spread over an adapter.
struct LayerStepPlan {
  LayerStepShape shape;
  std::uint32_t subgroup = 0, workgroup = 0, workgroups = 0;
  bool pairs = false;                    // codes are looked up by pairs
  std::uint32_t scratch = 0;             // elements of workgroup memory
  std::uint32_t shares_at = 0;           // where shares of rows begin there
  std::uint32_t most_parts = 0;          // of a head's keys
  std::uint32_t patience = 0;            // looks at a value that is not there yet
  std::uint32_t span() const;            // inputs of a subgroup's slice
  std::uint32_t region() const;          // words of the exchange that a layer takes
  std::uint64_t workgroup_bytes() const;
};

// Empty where the adapter or the shape does not suit. `workgroups` for tests; 0: as many as are resident.
std::optional<LayerStepPlan> layer_step_plan(gpu::Device& device, const LayerStepShape& shape, StepLookups lookups, std::uint32_t workgroups = 0);

// Workgroups of `workgroup` invocations and so many bytes of workgroup memory that run at one time, as a dispatch of more counted.
std::uint32_t resident_workgroups(gpu::Device& device, std::uint32_t workgroup, std::uint64_t workgroup_bytes);

// A layer's vectors, f32.
struct LayerStepVectors {
  Tensor attention_norm, mlp_norm;  // (hidden)
  Tensor q_norm, k_norm;            // (head_dim), with head_norm
  Tensor qkv_bias;                  // (q + k + v), with bias
};

struct LayerStepRoom {
  Tensor exchange;   // u32: a word that says whether one waited in vain, and a region for each layer of what is handed on within it
  Tensor constants;  // (layers, ...) f32: the vectors of each
  Tensor trouble() const { return exchange.part(0, {1}); }
};
LayerStepRoom make_layer_step_room(gpu::Device& device, const LayerStepPlan& plan, std::span<const LayerStepVectors> layers);
// Of so many workgroups; 0: at most. Nothing where the adapter or the shape does not suit.
std::uint64_t layer_step_room_bytes(const gpu::AdapterInfo& info, const LayerStepShape& shape, std::uint32_t layers, std::uint32_t workgroups = 0);
// Before the first layer of each token.
void clear(gpu::Recorder& recorder, const LayerStepRoom& room);

// Layers that follow one another and whose weights, keys and adapters lie in the same buffers, each kind the same distance apart.
struct LayerStep {
  const LayerStepPlan& plan;
  LayerStepRoom room;
  std::uint32_t layer = 0, layers = 1;  // the first, counted from the token's first, and how many there are
  Tensor input, output;  // (1, hidden), different tensors
  // The first layer's: qkv (q + k + v, hidden), o (hidden, heads * head_dim), gate_up (2 intermediate, hidden), down.
  std::array<Nf4, 4> weights;
  float eps = 1e-6f;
  std::uint32_t position = 0;
  Tensor table;                     // (positions, D/2, 2)
  Tensor k, v;                      // the first layer's (key_heads, capacity, D), f32 or f16
  std::uint32_t new_key = 0, keys = 0;  // the row of the new token's, and how many rows up to it are met
  // From a layer's first to the next one's; each is a multiple of 256 bytes.
  struct Strides {
    std::uint64_t weights = 0, keys = 0;  // bytes
    std::uint32_t a = 0, b = 0;           // elements
  } strides = {};
  // With a rank: all adapters, the places of a projection's A (rank, in) and B (out, rank) there in elements, by Projection, and
  // their factors; empty where a projection has none.
  struct Adapter {
    std::uint32_t a, b;
    float scaling;
  };
  Tensor lora = {};
  std::array<std::optional<Adapter>, 7> adapters = {};
};
void record(gpu::Recorder& recorder, const LayerStep& op);

}  // namespace nibble
