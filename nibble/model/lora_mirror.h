#pragma once

#include "nibble/model/dora.h"
#include "nibble/model/moments.h"
#include "nibble/weights/lora_state.h"
#include "nibble/weights/lora_weights.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace nibble {

// The adapters of a model with their moments, on the device and, where they are asked for there, on the host. The side that
// wrote last is the valid one; asking for the other brings it up to date first.
class LoraMirror {
 public:
  LoraMirror(gpu::Device& device, const ModelConfig& config, const LoraAdapter& adapter, bool trainable,
             const MomentsOptions& moments = {});

  const LoraConfig& config() const { return config_; }

  // To read on the device. The address stays the same for good.
  const LoraWeights* on_device();
  // To write on the device, as training does.
  const LoraWeights* train();
  // As new as on_device(), of which elements they are the moments; empty where the adapters are not trainable.
  Moments& moments();
  // The matrices by PEFT's names, as checkpoints have their moments.
  std::vector<MomentPart> moment_parts() const;
  // What the base's weights become by adapters of DoRA; null of others.
  Dora* dora() const { return dora_.get(); }
  // Magnitudes of a new adapter of DoRA; of another, nothing.
  void begin_dora(const DeviceWeights& weights);
  // To read on the host; without moments where the adapters are not trainable.
  const std::vector<LoraLayer>& on_host();
  // To write on the host, until the device is next asked for. Sizes must stay.
  std::vector<LoraLayer>& edit();
  // As PEFT stores it.
  LoraAdapter adapter(const ModelConfig& model);

  // Changes whenever one side is given out to be written.
  std::uint64_t version() const { return version_; }

 private:
  enum class Newest { both, host, device };

  gpu::Device& device_;
  LoraConfig config_;
  LoraWeights weights_;
  Moments moments_;
  std::unique_ptr<Dora> dora_;
  std::vector<LoraLayer> host_;
  Newest newest_ = Newest::device;
  std::uint64_t version_ = 0;
};

}  // namespace nibble
