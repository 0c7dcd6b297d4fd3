#include "nibble/model/lora_mirror.h"

namespace nibble {

LoraMirror::LoraMirror(gpu::Device& device, const ModelConfig& config, const LoraAdapter& adapter, bool trainable,
                       const MomentsOptions& moments)
    : device_(device), config_(adapter.config), weights_(upload_lora(device, config, adapter, trainable)) {
  if (trainable) moments_ = Moments(device, weights_.params.size(), moments, "AdamW moment");
  if (weights_.use_dora) dora_ = std::make_unique<Dora>(device, config, weights_);
}

void LoraMirror::begin_dora(const DeviceWeights& weights) {
  if (!dora_) return;
  gpu::Recorder recorder(device_);
  dora_->begin(recorder, weights);
  recorder.submit();
}

const LoraWeights* LoraMirror::on_device() {
  if (newest_ == Newest::host) {
    const FlatMoments moments = upload_lora_state(device_, weights_, host_);
    if (moments_) {
      moments_.set_values(Moments::Which::first, moments.first);
      moments_.set_values(Moments::Which::second, moments.second);
    }
    newest_ = Newest::both;
  }
  return &weights_;
}

const LoraWeights* LoraMirror::train() {
  on_device();
  host_ = {};
  newest_ = Newest::device;
  ++version_;
  return &weights_;
}

Moments& LoraMirror::moments() {
  on_device();
  return moments_;
}

std::vector<MomentPart> LoraMirror::moment_parts() const {
  std::vector<MomentPart> parts;
  for (std::uint32_t layer = 0; layer < weights_.layers.size(); ++layer) {
    for (const Projection p : all_projections) {
      const LoraSlot& slot = weights_.slot(layer, p);
      if (!slot.used()) continue;
      for (const LoraMatrix matrix : lora_matrices(weights_.use_dora)) {
        const gpu::Tensor& tensor = slot.matrix(matrix);
        parts.push_back({.name = peft_tensor_name(layer, p, matrix), .first = tensor.offset() / sizeof(float), .size = tensor.size()});
      }
    }
  }
  return parts;
}

const std::vector<LoraLayer>& LoraMirror::on_host() {
  if (newest_ == Newest::device) {
    FlatMoments moments;
    if (moments_) moments = {moments_.values(Moments::Which::first), moments_.values(Moments::Which::second)};
    host_ = download_lora_state(device_, weights_, moments);
    newest_ = Newest::both;
  }
  return host_;
}

std::vector<LoraLayer>& LoraMirror::edit() {
  on_host();
  newest_ = Newest::host;
  ++version_;
  return host_;
}

LoraAdapter LoraMirror::adapter(const ModelConfig& model) {
  return download_lora(device_, on_device()->params, make_lora_adapter(model, config_));
}

}  // namespace nibble
