#pragma once

#include "nibble/model/stream.h"
#include "nibble/model/table_slices.h"
#include "nibble/model/trained_tokens.h"
#include "nibble/weights/device_weights.h"
#include "nibble/kernels/operand.h"
#include "nibble/kernels/preference.h"

#include <memory>
#include <vector>

namespace nibble {

struct HeadOptions {
  ProductPath path = ProductPath::f32;
  std::uint32_t max_labels = 0;
  std::uint32_t chunk_rows = 0;  // rows whose logits exist at a time, rounded up to 64; 0: as many as suit the device
  bool trainable = true;         // room for gradients
  // Of the base's head; what a Head is made for has it from the weights.
  TableForm form = TableForm::dense;
  bool on_host = false, carried = false;  // see TableSlices
  std::uint32_t slice_rows = 0;           // likewise, where it is read in slices; 0: by the size
};

// What of a batch's losses the gradients are taken.
struct LossOptions {
  float factor = 1;       // gradients are those of factor times the sum of the losses
  float focal_gamma = 0;  // see CrossEntropy
  // Losses of pairs instead: its kind, sides, reference, statistics and factors; the head gives it losses and weights, and
  // `factor` and `focal_gamma` do not count. Must outlive the call.
  const Preference* preference = nullptr;
  HeadRowsGradient rows = {};  // of the head that are trained: their gradient is added to; empty: none
};

// Final norm, head and cross-entropy over the labelled rows alone, in chunks of rows, so that the logits are never whole in
// memory. A head that lies in host memory or in codes is read in slices of its own rows (TableSlices): all chunks meet a slice before
// the next comes, once for the losses and, since the logits are not kept, once more for the gradients.
class Head {
 public:
  Head(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const HeadOptions& options);

  struct Loss {
    Tensor loss;     // (R) f32, the negative log-likelihood of each label
    Tensor correct;  // (R) u32, 1 where the label has the largest logit
  };

  // x (T, C) is the residual stream after the last layer.
  Loss forward(gpu::Recorder& recorder, const DeviceStream& stream, const Tensor& x);
  // The same, and dx (T, C) = the gradient that the options ask for; with d_head (vocab, C) also += that of the head's
  // weights. Losses of pairs take two passes, whose first finds what each label's gradient is multiplied by.
  Loss forward_backward(gpu::Recorder& recorder, const DeviceStream& stream, const Tensor& x, const LossOptions& loss,
                        const Tensor& dx, const Tensor& d_head = {});

  // Logits (R, vocab) of the given rows of x, at most one chunk of them.
  Tensor logits(gpu::Recorder& recorder, const Tensor& x, const Tensor& rows, std::uint32_t count);

  // Multiplies by the base's own head where an adapter brings another; UsageError where it is not loaded.
  void use_base(bool use);

  std::uint32_t chunk_rows() const { return options_.chunk_rows; }
  // Whether the head is read in slices; what then is recorded must be submitted.
  bool in_slices() const { return static_cast<bool>(slices_); }
  // With chunk_rows chosen and rounded.
  static HeadOptions settled(const gpu::AdapterInfo& info, const ModelConfig& config, HeadOptions options);
  // Logits of 128 MiB, or of a 64th of the device's memory up to 320 MiB.
  static std::uint32_t default_chunk_rows(const gpu::AdapterInfo& info, std::uint32_t vocab_size);
  static std::uint64_t bytes(const gpu::Device& device, const ModelConfig& config, HeadOptions options);
  // Elements of the partial sums of the gradient of a head that is trained; 0: none are needed.
  static std::uint64_t gradient_scratch(const gpu::Device& device, const ModelConfig& config, const HeadOptions& settled);

 private:
  Weight weight() const;
  void normalise(gpu::Recorder& recorder, const Tensor& x, const Tensor& rows, std::uint32_t count);
  std::vector<gpu::RowRange> chunks(std::uint32_t labels) const;
  // Logits of rows [begin, end) of what was normalised.
  Tensor chunk_logits(gpu::Recorder& recorder, std::uint32_t begin, std::uint32_t end);
  // Losses and right predictions of all labels. The logits of the last chunk stay.
  void losses(gpu::Recorder& recorder, const DeviceStream& stream);
  void gradients(gpu::Recorder& recorder, const DeviceStream& stream, const LossOptions& loss, const Tensor& d_head);
  void preference_weights(gpu::Recorder& recorder, const LossOptions& loss, std::uint32_t labels);

  // The same through slices.
  const Table& table() const { return uses_base_ ? weights_.base_head : weights_.head; }
  TableSlices& slices() { return base_slices_ && uses_base_ ? *base_slices_ : *slices_; }
  Tensor slice_logits(gpu::Recorder& recorder, const Weight& weight, gpu::RowRange rows);
  void losses_in_slices(gpu::Recorder& recorder, const DeviceStream& stream);
  void gradients_in_slices(gpu::Recorder& recorder, const DeviceStream& stream, const LossOptions& loss, const Tensor& d_head);
  Tensor logits_in_slices(gpu::Recorder& recorder, std::uint32_t count);

  const ModelConfig& config_;
  const DeviceWeights& weights_;
  HeadOptions options_;
  bool uses_base_ = false;
  Operand normed_;         // (R, C)
  Tensor inv_rms_;         // (R)
  Tensor d_normed_;        // (R, C)
  Tensor logits_;          // (chunk, vocab), or of a slice
  Operand d_logits_;       // likewise; in f32 the logits' own buffer
  // Where the base's head is read in slices: of the head in use, and of the base's where that is another.
  std::unique_ptr<TableSlices> slices_, base_slices_;
  Tensor stats_;           // (R, 4) of logits in slices
  Tensor whole_logits_;    // (chunk, vocab), made when they are first asked for of a head in slices
  Tensor loss_, correct_;  // (R)
  Tensor label_weights_;   // (R) what losses of pairs multiply the labels' gradients by
  Tensor product_scratch_;  // partial sums of products; empty where there are none
  Tensor head_scratch_;     // partial sums of the head's gradient, made when it is first asked for
};

}  // namespace nibble
