#include "nibble/model/lora_mirror.h"

namespace nibble {

LoraMirror::LoraMirror(gpu::Device& device, const ModelConfig& config, const LoraAdapter& adapter, bool trainable)
    : device_(device), config_(adapter.config), weights_(upload_lora(device, config, adapter, trainable)) {
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
    upload_lora_state(device_, weights_, host_);
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

const std::vector<LoraLayer>& LoraMirror::on_host() {
  if (newest_ == Newest::device) {
    host_ = download_lora_state(device_, weights_);
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
