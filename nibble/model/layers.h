#pragma once

#include "nibble/model/activation_choice.h"
#include "nibble/model/linear.h"
#include "nibble/model/rope.h"
#include "nibble/model/stream.h"
#include "nibble/weights/config.h"

#include <memory>
#include <span>

namespace nibble {

// Rotated keys, and values, of one layer, kept from pass to pass.
struct KeyCache {
  Tensor k, v;  // (Hk, capacity, D), f32, or f16 where several texts may pass (texts_apart())
};

// What the layers of one pass share.
struct LayerPass {
  gpu::Recorder& recorder;
  const DeviceStream& stream;
  const Rotations& rotations;
  const LoraWeights* lora = nullptr;  // null: the base alone
  bool same_lora = false;             // as in the last pass with adapters: what was made of them then is kept
  Dora* dora = nullptr;               // of such adapters, else null
  LoraDropout dropout = {};
  std::span<const KeyCache> caches = {};  // of each layer; empty: keys and values are the stream's alone
  std::uint32_t first_key = 0;            // row of the caches where the stream's first key goes; bounds count rows of them
  std::uint32_t most_keys = 0;            // that a query meets; 0: all rows of the caches so far
  bool apart = false;                     // tokens of several texts (QkvAttention::apart); of one each at most texts_apart()
};

struct LayersOptions {
  ProductPath path = ProductPath::f32;
  std::vector<Residency> residency = {};  // by layer; empty: all resident
  bool one_decoded_room = false;  // all projections are decoded into the same room, one after the other, and layers' adapters packed likewise
  std::uint32_t max_tokens = 0;
  std::uint32_t rank = 0;      // of the adapters; 0: none
  bool use_dora = false;
  bool trainable = true;       // room for the backward pass
  std::optional<bool> decodes_in_products = {};  // not trainable: products of few rows (most_decoding_rows) read NF4 themselves; for tests; empty: by the adapter
  ActivationChoices activations = {};  // of the backward pass
  std::uint32_t mlp_chunk = 0;  // rows of which the MLP's values exist at a time; 0: all rows
  bool lora_dropout = false;   // passes may drop inputs of the adapters
  bool expert_adapters = false;  // projections of experts have adapters
};

// All layers of a model with the room that their passes need: two ways to run the same layers, by what the adapter has.
class Layers {
 public:
  virtual ~Layers() = default;

  // Before the layers of a forward pass, and before a backward pass after another one.
  virtual void begin(const LayerPass& pass) = 0;
  // input (T, C) is read, output (T, C) written; both are the residual stream.
  virtual void forward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output) = 0;
  // Computes again what the backward pass of a layer needs and its choice did not keep; the last layers that went forward may
  // still be there. input (T, C) as it was.
  virtual void recompute(const LayerPass& pass, std::uint32_t layer, const Tensor& input) = 0;
  // dx (T, C) holds the gradient at the layer's output and receives that at its input, whose adapters' gradients are added
  // to, at the latest by end(). `input_gradient` false leaves dx as it is: below the first layer nothing learns. From layer to layer of a pass dx stays as it was left.
  virtual void backward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& dx,
                        bool input_gradient) = 0;
  // Behind the layers of a backward pass, which may be one alone: then gradients of adapters are there.
  virtual void end(const LayerPass&) {}
  // The MLP alone, y = x + mlp(norm(x)).
  virtual void mlp_forward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output) = 0;
  virtual void mlp_backward(const LayerPass& pass, std::uint32_t layer, const Tensor& dx) = 0;
  // The residual stream (T, C) between attention and MLP of the layer that ran last.
  virtual Tensor middle(std::uint32_t layer, std::uint32_t tokens) const = 0;
};

// Rows of a chunk are a multiple of this, so that bindings may begin with each.
constexpr std::uint32_t mlp_chunk_multiple = 64;

// UsageError where the MLP cannot be computed in such chunks: values of a chunk cannot be kept for the backward pass.
void check_mlp_chunk(const ModelConfig& config, const ActivationChoices& choices, std::uint32_t chunk);

struct LayersBytes {
  std::uint64_t decoded_weights = 0, activations = 0, scratch = 0;
};

// Texts of which passes may have one token each; 0: none.
std::uint32_t texts_apart(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options);

// `lora` may be null; its address must stay valid.
std::unique_ptr<Layers> make_layers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights,
                                    const LoraWeights* lora, const LayersOptions& options);
LayersBytes layers_bytes(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options);

}  // namespace nibble
