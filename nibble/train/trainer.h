#pragma once

#include "nibble/gpu/readback.h"
#include "nibble/model/model.h"
#include "nibble/report/records.h"
#include "nibble/train/loss.h"
#include "nibble/train/optimizer.h"

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace nibble {

struct TrainerOptions {
  ModelOptions model;
  AdamWOptions adamw;
  LossSettings loss;
  double lora_dropout = 0;
  double neftune_alpha = 0;  // noise on the embeddings (nibble/kernels/neftune.h); 0: none
  std::uint64_t seed = 42;   // of dropout and noise, which are fresh in each update
};

struct StepResult {
  double loss = 0;       // mean over the labels, or over pairs
  double grad_norm = 0;  // before clipping
  std::uint64_t labels = 0, correct = 0;  // correct: those that were the most likely token
  std::optional<PreferenceRecord> preference;  // of pairs
};

// What a layer gives on its own, all (T, hidden).
struct LayerResult {
  std::vector<float> output, d_input;
  double grad_norm = 0;  // of the layer's adapters, before clipping
};

struct LoraGradients {
  std::vector<float> d_a;  // (rank, in)
  std::vector<float> d_b;  // (out, rank)
  std::vector<float> d_x;  // (T, in); only of lora_backward
  std::vector<float> d_magnitude;  // (out); of DoRA alone
};

// Trains the adapters of a state: whole updates, and the parts of one for those who build their own. Host arrays are row-major
// f32; T is any number up to model.max_tokens.
class Trainer {
 public:
  // The state must outlive it. Its adapters must be trainable (UsageError), or come by with_lora.
  explicit Trainer(ModelState& state, const TrainerOptions& options = {});

  // Gives the state a new adapter of all projections with this rank and alpha.
  Trainer& with_lora(std::uint32_t rank, double lora_alpha);
  Trainer& with_adamw(const AdamWOptions& adamw);

  // The GPU's own name, with its driver.
  std::string adapter_info() const;
  // Updates done; the state's.
  std::uint64_t current_step() const { return state_.step; }

  // One update from the mean loss over the labels of all batches, or over their pairs, however they were cut. A loss or
  // gradient that is not finite changes nothing and throws Diverged.
  StepResult full_train_step(std::span<const TokenStream> batches, double learning_rate);
  // The same in two halves, between which the CPU is free. Further updates may begin before the first has ended, as many as
  // steps_ahead() says: the GPU then goes from one to the next. end_step gives the oldest. Where that is not finite nothing was
  // changed, the update is not counted, and those begun after it are dropped without having changed anything; nothing is
  // thrown.
  void begin_step(std::span<const TokenStream> batches, double learning_rate);
  StepResult end_step();
  std::size_t steps_begun() const { return begun_.size(); }
  // Whether begin_step threw so late that its update may have taken place all the same.
  bool update_in_doubt() const { return in_doubt_; }
  // Updates that may be on their way beside the oldest: none with a head that is trained, which settles after each, and none where
  // layers come from a disk, as recording then keeps step with the device.
  std::size_t steps_ahead() const;
  // The gradients that the next update would have, and no more.
  void find_gradients(std::span<const TokenStream> batches);

  // One layer over a single sequence: output of `hidden` (T, hidden), the gradients that `d_output`, the loss's gradient at the
  // output, makes, and an update of this layer's adapters alone. Counts as an update.
  LayerResult layer_train_step(std::uint32_t layer, std::span<const float> hidden, std::span<const float> d_output,
                               double learning_rate);
  // The gradient at the input (T, hidden) of a layer's MLP block, y = x + mlp(norm(x)); those of its adapters are then in
  // gradients().
  std::vector<float> ffn_backward(std::uint32_t layer, std::span<const float> input, std::span<const float> d_output);
  // scaling * (x A^T) B^T, (T, out), of x (T, in); and its gradients for dy (T, out).
  std::vector<float> lora_forward(std::uint32_t layer, Projection projection, std::span<const float> x);
  LoraGradients lora_backward(std::uint32_t layer, Projection projection, std::span<const float> x, std::span<const float> dy);
  // Of the last backward pass.
  LoraGradients gradients(std::uint32_t layer, Projection projection) const;

  // The model that the steps run on, made when it is first needed; with_lora makes a new one.
  Model& model();
  ModelState& state() { return state_; }

 private:
  // An update that has begun: what its sums are divided by, and its statistics on their way.
  struct Begun {
    std::uint64_t labels = 0, pairs = 0, chosen_labels = 0;
    std::optional<gpu::Readback> statistics = {};
  };
  Begun count(std::span<const TokenStream> batches) const;
  void record_gradients(gpu::Recorder& recorder, std::span<const TokenStream> batches, const Begun& counts);
  StepResult result_of(const Begun& begun, std::span<const float> statistics) const;
  // Losses, statistics and gradients of one of the update's batches.
  Tensor head_gradient() const;  // empty where the head is not trained
  void record_batch(gpu::Recorder& recorder, const TokenStream& batch, const Begun& counts, std::size_t index);
  void record_loss(gpu::Recorder& recorder, const DeviceStream& stream, const Begun& counts, const TrainingNoise& noise,
                   bool accumulate);
  void record_pairs(gpu::Recorder& recorder, const DeviceStream& stream, const Begun& counts, const TrainingNoise& noise,
                    bool accumulate);

  std::uint32_t rows_of(std::span<const float> values, std::uint32_t columns, std::string_view name) const;
  Tensor upload(std::span<const float> values, std::uint32_t columns, std::string_view name);
  DeviceStream one_segment(gpu::Recorder& recorder, std::uint32_t tokens);

  ModelState& state_;
  TrainerOptions options_;
  std::optional<Model> model_;
  Optimizer optimizer_;
  // One readback an update: loss sum, right predictions (u32), gradient norm and clip factor, and from `pair_sums` on the sums
  // of PreferenceStatistics.
  Tensor stats_;
  Tensor pair_statistics_;  // of a batch, as large as was needed yet
  bool in_doubt_ = false;
  std::deque<Begun> begun_;                 // oldest first
  std::vector<gpu::Readback> readbacks_;    // free
};

}  // namespace nibble
