#include "nibble/base/error.h"
#include "nibble/kernels/nf4.h"
#include "nibble/kernels/transpose.h"
#include "nibble/model/expert_mlp.h"
#include "nibble/model/model_state.h"
#include "nibble/weights/layer_stream.h"

#include <algorithm>

// The caches of ModelState.
namespace nibble {
namespace {

struct CacheBytes {
  std::uint64_t kept = 0, largest = 0;  // of all projections; of the largest
  std::uint32_t largest_values = 0;
  std::uint64_t needed() const { return kept + largest; }
};

CacheBytes cache_bytes(const ModelConfig& config) {
  CacheBytes bytes;
  for (const Projection p : all_projections) {
    const auto [out, in] = projection_dims(config, p);
    const std::uint64_t one = gpu::buffer_bytes(DType::f32, {out, in});
    bytes.kept += gpu::buffer_bytes(DType::f32, {matrices_of(config, p) * out, in}) * config.num_layers;
    bytes.largest = std::max(bytes.largest, one);
    bytes.largest_values = std::max(bytes.largest_values, out * in);
  }
  return bytes;
}

// What the adapter says to have left; empty where it does not say.
std::optional<std::uint64_t> free_bytes(const gpu::Device& device) {
  const std::uint64_t memory = device.info().memory_bytes, used = device.memory().current;
  if (memory == 0) return {};
  return memory - std::min(memory, used);
}

void fill_layer(gpu::Device& device, const ModelConfig& config, DeviceWeights& weights, std::uint32_t index, const gpu::Tensor& room) {
  LayerWeights& layer = weights.layers[index];
  gpu::Recorder recorder(device);
  for (const Projection p : all_projections) {
    const Nf4Matrix& matrix = weights.projections(recorder, index)[static_cast<std::size_t>(p)];
    const Nf4 w{.packed = matrix.packed, .absmax = matrix.absmax, .codes = matrix.codes};
    gpu::Tensor& cached = layer.transposed[static_cast<std::size_t>(p)];
    const std::string label = fmt::format("cached.{}", name_of(p));
    if (is_of_experts(config, p)) {
      cached = device.tensor(DType::f32, {matrix.out, matrix.in}, label);
      record(recorder, DequantizeNf4{.w = w, .out = {.data = cached}});
      continue;
    }
    const gpu::Tensor decoded = room.view({matrix.out, matrix.in});
    cached = device.tensor(DType::f32, {matrix.in, matrix.out}, label);
    record(recorder, DequantizeNf4{.w = w, .out = {.data = decoded}});
    record(recorder, Transpose{.x = decoded, .y = cached});
  }
  recorder.submit();
}

}  // namespace

void ModelState::populate_weight_cache(std::optional<std::uint64_t> limit) {
  auto& layers = weights_->layers;
  if (layers.back().transposed[0]) return;
  const CacheBytes bytes = cache_bytes(config_);
  const auto room = limit ? limit : free_bytes(*device_);
  check<OutOfDeviceMemory>(!room || bytes.needed() <= *room, "weight cache",
                           "The caches need {} bytes on the device ({} to keep, {} while they are filled); {} may be used.",
                           bytes.needed(), bytes.kept, bytes.largest, room.value_or(0));
  try {
    const auto scratch = device_->tensor(DType::f32, {bytes.largest_values}, "cache scratch");
    weights_->go(LayerOrder::round);
    for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) fill_layer(*device_, config_, *weights_, layer, scratch);
    device_->wait("filling the weight cache");
  } catch (const OutOfDeviceMemory& error) {
    for (LayerWeights& layer : layers) layer.transposed = {};
    fail<OutOfDeviceMemory>("weight cache", "The caches need {} bytes on the device, which has less: {}", bytes.needed(),
                            error.what());
  }
}

std::optional<FfnCache> ModelState::ffn_cache(std::uint32_t layer) const {
  const LayerWeights& weights = weights_->layers.at(layer);
  if (!weights.transposed[0] || weights.experts() > 0) return {};
  return FfnCache{.gate = weights.cached(Projection::gate), .up = weights.cached(Projection::up),
                  .down = weights.cached(Projection::down)};
}

std::optional<AttnCache> ModelState::attn_cache(std::uint32_t layer) const {
  const LayerWeights& weights = weights_->layers.at(layer);
  if (!weights.transposed[0]) return {};
  return AttnCache{.q = weights.cached(Projection::q), .k = weights.cached(Projection::k),
                   .v = weights.cached(Projection::v), .o = weights.cached(Projection::o)};
}

}  // namespace nibble
