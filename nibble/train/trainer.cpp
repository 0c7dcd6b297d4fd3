#include "nibble/train/trainer.h"

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/sum.h"

#include <cmath>
#include <cstring>

namespace nibble {
namespace {

// What the random numbers of a batch are for.
enum class Draw : std::uint32_t { dropout = 0x64726f70, noise = 0x6e6f6973 };

std::uint32_t draw(Draw what, std::uint64_t seed, std::uint64_t step, std::size_t batch) {
  return philox4x32({static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(step >> 32),
                     static_cast<std::uint32_t>(batch), static_cast<std::uint32_t>(what)},
                    {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)})[0];
}

}  // namespace

Trainer::Trainer(ModelState& state, const TrainerOptions& options)
    : state_(state),
      options_(options),
      optimizer_(state.device(), options.adamw),
      stats_(state.device().tensor(DType::f32, {4}, "step statistics")) {}

Trainer& Trainer::with_lora(std::uint32_t rank, double lora_alpha) {
  LoraAdapter adapter = make_lora_adapter(state_.config(), {.rank = rank, .lora_alpha = lora_alpha});
  initialise_lora(adapter, options_.seed);
  model_.reset();
  state_.set_lora(adapter, true);
  return *this;
}

Trainer& Trainer::with_adamw(const AdamWOptions& adamw) {
  options_.adamw = adamw;
  optimizer_ = Optimizer(state_.device(), adamw);
  return *this;
}

std::string Trainer::adapter_info() const {
  const gpu::AdapterInfo& info = state_.device().info();
  return fmt::format("{} ({}, {})", info.name, info.backend, info.driver);
}

Model& Trainer::model() {
  if (!model_) {
    check<UsageError>(static_cast<bool>(state_.lora_mirror().on_device()->grads), "trainer",
                      "The state's adapter is not trainable; load it with StateOptions::trainable.");
    model_.emplace(state_, options_.model);
  }
  return *model_;
}

void Trainer::begin_step(std::span<const TokenStream> batches, double learning_rate) {
  Model& on = model();
  labels_ = 0;
  for (const TokenStream& batch : batches) labels_ += batch.labels.size();
  check<UsageError>(labels_ > 0, "trainer", "The {} batches of the update have no label to learn.", batches.size());
  const LoraWeights& lora = *state_.lora_mirror().train();
  gpu::Recorder recorder(state_.device());
  recorder.clear(lora.grads);
  for (std::size_t i = 0; i < batches.size(); ++i) {
    const DeviceStream stream = on.upload(recorder, batches[i]);
    const TrainingNoise noise{.dropout = {.probability = static_cast<float>(options_.lora_dropout),
                                          .seed = draw(Draw::dropout, options_.seed, state_.step, i)},
                              .neftune = {.alpha = static_cast<float>(options_.neftune_alpha),
                                          .seed = draw(Draw::noise, options_.seed, state_.step, i)}};
    // Divided by the labels of the whole update, so that accumulation gives the gradient of one large batch.
    const Head::Loss loss = on.loss_and_gradients(recorder, stream, {.factor = 1.0f / static_cast<float>(labels_)}, noise);
    record(recorder, Sum{.x = loss.loss, .total = stats_, .slot = 0, .accumulate = i > 0});
    record(recorder, Sum{.x = loss.correct, .total = stats_, .slot = 1, .accumulate = i > 0});
  }
  optimizer_.record_step(recorder, lora, learning_rate, state_.step + 1);
  recorder.copy(optimizer_.norm_and_factor(), stats_.part(2, {2}));
  recorder.submit();
}

StepResult Trainer::end_step() {
  const auto stats = state_.device().read<float>(stats_);
  std::uint32_t correct = 0;
  std::memcpy(&correct, &stats[1], sizeof correct);
  const StepResult result{.loss = stats[0] / static_cast<double>(labels_), .grad_norm = stats[2], .labels = labels_,
                          .correct = correct};
  if (std::isfinite(result.loss) && std::isfinite(result.grad_norm)) ++state_.step;
  return result;
}

StepResult Trainer::full_train_step(std::span<const TokenStream> batches, double learning_rate) {
  const std::uint64_t before = state_.step;
  begin_step(batches, learning_rate);
  const StepResult result = end_step();
  check<Diverged>(state_.step > before, "trainer",
                  "Update {}: the loss is {} and the gradient norm {}; lower the learning rate or look at the batch.", before + 1,
                  result.loss, result.grad_norm);
  return result;
}

}  // namespace nibble
