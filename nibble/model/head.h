#pragma once

#include "nibble/model/stream.h"
#include "nibble/weights/device_weights.h"
#include "nibble/kernels/operand.h"

namespace nibble {

struct HeadOptions {
  ProductPath path = ProductPath::f32;
  std::uint32_t max_labels = 0;
  std::uint32_t chunk_rows = 0;  // rows whose logits exist at a time, rounded up to 64; 0 chooses about 128 MiB of them
  bool trainable = true;         // room for gradients
};

// Final norm, head and cross-entropy over the labelled rows alone, in chunks of rows, so that the logits are never whole in
// memory.
class Head {
 public:
  Head(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const HeadOptions& options);

  struct Loss {
    Tensor loss;     // (R) f32, the negative log-likelihood of each label
    Tensor correct;  // (R) u32, 1 where the label has the largest logit
  };

  // x (T, C) is the residual stream after the last layer.
  Loss forward(gpu::Recorder& recorder, const DeviceStream& stream, const Tensor& x);
  // The same, and dx (T, C) = factor times the gradient of the sum of the losses; with d_head (vocab, C) also += that of the
  // head's weights.
  Loss forward_backward(gpu::Recorder& recorder, const DeviceStream& stream, const Tensor& x, float factor,
                        const Tensor& dx, const Tensor& d_head = {});

  // Logits (R, vocab) of the given rows of x, at most one chunk of them.
  Tensor logits(gpu::Recorder& recorder, const Tensor& x, const Tensor& rows, std::uint32_t count);

  std::uint32_t chunk_rows() const { return options_.chunk_rows; }
  static std::uint32_t default_chunk_rows(const gpu::Limits& limits, std::uint32_t vocab_size);
  static std::uint64_t bytes(const ModelConfig& config, const HeadOptions& options);

 private:
  void normalise(gpu::Recorder& recorder, const Tensor& x, const Tensor& rows, std::uint32_t count);
  Loss run(gpu::Recorder& recorder, const DeviceStream& stream, const Tensor& x, const float* factor,
           const Tensor& d_head);

  const ModelConfig& config_;
  const DeviceWeights& weights_;
  HeadOptions options_;
  Operand normed_;         // (R, C)
  Tensor inv_rms_;         // (R)
  Tensor d_normed_;        // (R, C)
  Tensor logits_;          // (chunk, vocab)
  Operand d_logits_;       // (chunk, vocab); in f32 the logits' own buffer
  Tensor loss_, correct_;  // (R)
  Tensor head_scratch_;    // partial sums of the head's gradient, made when it is first asked for
};

}  // namespace nibble
