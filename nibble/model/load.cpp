#include "nibble/model/load.h"

namespace nibble {

LoadedModel load_model(gpu::Device& device, const ModelSource& source, ProductPath path,
                       const std::function<void(double)>& progress) {
  LoadedModel result;
  result.config = read_model_config(source.model);
  if (!source.adapter.empty()) result.adapter = load_lora_adapter(source.adapter, result.config);
  const Checkpoint checkpoint(source.model);
  result.weights = load_weights(device, checkpoint, result.config,
                                {.dense_dtype = operand_dtype(path), .progress = progress});
  if (result.adapter) result.lora = upload_lora(device, result.config, *result.adapter, source.trainable);
  return result;
}

}  // namespace nibble
