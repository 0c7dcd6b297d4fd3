#pragma once

#include "nibble/gpu/recorder.h"
#include "nibble/weights/config.h"
#include "nibble/weights/peft.h"

#include <array>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

// The matrices of one adapted projection on the device, and their gradients.
struct LoraSlot {
  gpu::Tensor a, a_grad;  // (rank, in) f32; those of experts one below the other
  gpu::Tensor b, b_grad;  // (out, rank) f32; likewise
  float scaling = 1.0f;   // lora_alpha / rank, or lora_alpha / sqrt(rank) for rsLoRA, of the module's own rank
  // Of DoRA (Liu et al. 2024), else empty: y = gain * (W x + scaling * B A x), where gain is the magnitude over the norm of that row
  // of W + scaling * B A.
  gpu::Tensor magnitude, magnitude_grad;  // (out) f32
  gpu::Tensor gain;                       // (out) f32
  // What products read in B's place: gain * B with DoRA, whose weights are scaled likewise (nibble/model/dora.h), else B itself.
  gpu::Tensor b_read;
  bool used() const { return static_cast<bool>(a); }
  const gpu::Tensor& matrix(LoraMatrix which) const {
    return which == LoraMatrix::a ? a : which == LoraMatrix::b ? b : magnitude;
  }
};

// Elements: bindings may begin there on every adapter, and blocks of moments in 8 bits never hold two matrices.
constexpr std::uint64_t lora_alignment = 256;

// All adapters of a model. Modules of a lower rank than others are padded to the largest with rows of A and columns of B that are
// zero, and stay so: the gradient of such a row of A is a sum over that column of B, and the other way round, so both are zero, and
// so are their moments, their share of the gradient's norm and what decay takes. The matrices lie one after the other in `params`, all A before all B, and DoRA's magnitudes after those, each beginning at a multiple
// of lora_alignment, and in the same places in gradients and moments (nibble/model/moments.h), so that the optimiser is one kernel, or two where B (and with it, as in PEFT, the magnitudes)
// learns faster than A.
struct LoraWeights {
  std::uint32_t rank = 0;  // the largest
  std::uint64_t b_begin = 0;  // the first element of the first B
  gpu::Tensor params;
  gpu::Tensor grads;  // only where trainable
  bool use_dora = false;
  std::vector<std::array<LoraSlot, 7>> layers;     // by Projection

  const LoraSlot& slot(std::uint32_t layer, Projection p) const { return layers[layer][static_cast<std::size_t>(p)]; }
  std::uint64_t parameter_count() const;  // without the gaps, with what pads ranks
};

// Room for an adapter of this form, filled from it.
LoraWeights upload_lora(gpu::Device& device, const ModelConfig& config, const LoraAdapter& adapter, bool trainable);

// Of the flat tensors, with their gaps.
std::uint64_t lora_elements(const ModelConfig& config, const LoraConfig& lora);

// What upload_lora takes of the device's memory.
std::uint64_t lora_bytes(const ModelConfig& config, const LoraConfig& lora, bool trainable);

// A flat tensor (params or gradients) as matrices of the modules' own ranks, in the form of `like`, and back.
LoraAdapter download_lora(gpu::Device& device, const gpu::Tensor& flat, const LoraAdapter& like);
void upload_flat(gpu::Device& device, const gpu::Tensor& flat, const LoraAdapter& adapter);

// " in the gradient of model.layers.3.mlp.up_proj.lora_B", for errors; empty where the element lies in none.
std::string describe_element(const LoraWeights& weights, std::uint64_t element);

// A uniform in +-1/sqrt(in), B zero (PEFT's kaiming_uniform with a = sqrt(5)): the model is unchanged at the start. DoRA's magnitudes
// are the norms of the base's rows, which the device finds (Dora::begin).
// Gaussian (PEFT's "gaussian"): A normal with a deviation of 1 / rank.
void initialise_lora(LoraAdapter& adapter, std::uint64_t seed, bool gaussian = false);

}  // namespace nibble
