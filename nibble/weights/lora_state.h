#pragma once

#include "nibble/gpu/device.h"
#include "nibble/weights/names.h"

#include <cstdint>
#include <utility>
#include <vector>

namespace nibble {

// One of each for the seven projections of a layer.
template <typename T>
struct PerProjection {
  T q, k, v, o, gate, up, down;

  T& at(Projection p) { return const_cast<T&>(std::as_const(*this).at(p)); }
  const T& at(Projection p) const {
    switch (p) {
      case Projection::q: return q;
      case Projection::k: return k;
      case Projection::v: return v;
      case Projection::o: return o;
      case Projection::gate: return gate;
      case Projection::up: return up;
      case Projection::down: break;
    }
    return down;
  }
};

// An adapted projection on the host, y += scaling * B (A x), with the moments of AdamW. Row-major f32.
struct LoraProjection {
  std::uint32_t rank = 0, in_dim = 0, out_dim = 0;  // rank 0: the projection is not adapted
  std::vector<float> a, m_a, v_a;                   // (rank, in_dim)
  std::vector<float> b, m_b, v_b;                   // (out_dim, rank)
  std::vector<float> magnitude, m_magnitude, v_magnitude;  // (out_dim) of DoRA, else empty

  bool used() const { return rank > 0; }
  std::uint64_t parameter_count() const { return std::uint64_t{rank} * (std::uint64_t{in_dim} + out_dim) + magnitude.size(); }
};

using LoraLayer = PerProjection<LoraProjection>;

struct LoraWeights;

// AdamW's moments in the places of LoraWeights::params; both empty where nothing is trained.
struct FlatMoments {
  std::vector<float> first, second;
};

// The adapters as they are on the device, with such moments, and back. A matrix of another size than the device's is refused by
// name (UsageError) before anything is written; moments are looked at, and returned, where the adapters have gradients.
std::vector<LoraLayer> download_lora_state(gpu::Device& device, const LoraWeights& weights, const FlatMoments& moments);
FlatMoments upload_lora_state(gpu::Device& device, const LoraWeights& weights, const std::vector<LoraLayer>& layers);

}  // namespace nibble
