#include "nibble/train/trainer.h"

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/sum.h"
#include "nibble/train/preference.h"

#include <cmath>
#include <cstring>

namespace nibble {
namespace {

// Where the sums over pairs lie in the step's statistics: bindings may begin there on every adapter.
constexpr std::uint32_t pair_sums = 64;

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
      stats_(state.device().tensor(DType::f32, {pair_sums + preference_statistics}, "step statistics")) {}

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
    ModelOptions options = options_.model;
    options.lora_dropout = options_.lora_dropout > 0;
    model_.emplace(state_, options);
  }
  return *model_;
}

void Trainer::count(std::span<const TokenStream> batches) {
  labels_ = pairs_ = chosen_labels_ = 0;
  for (const TokenStream& batch : batches) {
    labels_ += batch.labels.size();
    pairs_ += batch.sides.size() / 2;
    for (std::size_t i = 0; i + 1 < batch.sides.size(); i += 2) chosen_labels_ += batch.sides[i + 1] - batch.sides[i];
    check<UsageError>(options_.loss.takes_pairs() == !batch.sides.empty(), "trainer", "The loss {} takes {}.",
                      name_of(options_.loss.kind), options_.loss.takes_pairs() ? "pairs of answers" : "no pairs of answers");
    check<UsageError>(options_.loss.kind != TrainLoss::dpo || !batch.reference.empty(), "trainer",
                      "DPO needs the reference's log-probabilities of the pairs.");
  }
  check<UsageError>(labels_ > 0, "trainer", "The {} batches of the update have no label to learn.", batches.size());
}

void Trainer::begin_step(std::span<const TokenStream> batches, double learning_rate) {
  count(batches);
  model();
  const LoraWeights& lora = *state_.lora_mirror().train();
  gpu::Recorder recorder(state_.device());
  recorder.clear(lora.grads);
  TrainedHead* head = state_.trained_head();
  if (head) recorder.clear(head->gradient());
  for (std::size_t i = 0; i < batches.size(); ++i) record_batch(recorder, batches[i], i);
  optimizer_.record_step(recorder, lora, learning_rate, state_.step + 1, head);
  recorder.copy(optimizer_.norm_and_factor(), stats_.part(2, {2}));
  recorder.submit();
}

Tensor Trainer::head_gradient() const {
  const TrainedHead* head = state_.trained_head();
  return head ? head->gradient() : Tensor{};
}

void Trainer::record_batch(gpu::Recorder& recorder, const TokenStream& batch, std::size_t index) {
  const DeviceStream stream = model_->upload(recorder, batch);
  const TrainingNoise noise{.dropout = {.probability = static_cast<float>(options_.lora_dropout),
                                        .seed = draw(Draw::dropout, options_.seed, state_.step, index)},
                            .neftune = {.alpha = static_cast<float>(options_.neftune_alpha),
                                        .seed = draw(Draw::noise, options_.seed, state_.step, index)}};
  if (options_.loss.takes_pairs()) {
    record_pairs(recorder, stream, noise, index > 0);
  } else {
    record_loss(recorder, stream, noise, index > 0);
  }
}

// Divided by the labels of the whole update, so that accumulation gives the gradient of one large batch.
void Trainer::record_loss(gpu::Recorder& recorder, const DeviceStream& stream, const TrainingNoise& noise, bool accumulate) {
  const LossOptions options{.factor = 1.0f / static_cast<float>(labels_),
                            .focal_gamma = static_cast<float>(options_.loss.focal_gamma)};
  const Head::Loss loss = model_->loss_and_gradients(recorder, stream, options, noise, head_gradient());
  record(recorder, Sum{.x = loss.loss, .total = stats_, .slot = 0, .accumulate = accumulate});
  record(recorder, Sum{.x = loss.correct, .total = stats_, .slot = 1, .accumulate = accumulate});
}

// Divided by the pairs of the whole update likewise, and ORPO's likelihood by its chosen labels.
void Trainer::record_pairs(gpu::Recorder& recorder, const DeviceStream& stream, const TrainingNoise& noise, bool accumulate) {
  const std::uint32_t pairs = stream.sides.dim(0) / 2;
  if (!pair_statistics_ || pair_statistics_.dim(0) < pairs) {
    pair_statistics_ = state_.device().tensor(DType::f32, {pairs, preference_statistics}, "pair statistics");
  }
  Preference preference = preference_of(options_.loss, stream);
  preference.statistics = pair_statistics_.rows(0, pairs);
  preference.pair_factor = 1.0f / static_cast<float>(pairs_);
  if (options_.loss.kind == TrainLoss::orpo) preference.token_factor = 1.0f / static_cast<float>(chosen_labels_);
  const Head::Loss loss = model_->loss_and_gradients(recorder, stream, {.preference = &preference}, noise, head_gradient());
  record(recorder, PreferenceTotal{.statistics = preference.statistics, .total = stats_.part(pair_sums, {preference_statistics}),
                                   .accumulate = accumulate});
  record(recorder, Sum{.x = loss.correct, .total = stats_, .slot = 1, .accumulate = accumulate});
}

StepResult Trainer::end_step() {
  const auto stats = state_.device().read<float>(stats_);
  if (TrainedHead* head = state_.trained_head()) head->settle();
  std::uint32_t correct = 0;
  std::memcpy(&correct, &stats[1], sizeof correct);
  StepResult result{.loss = stats[0] / static_cast<double>(labels_), .grad_norm = stats[2], .labels = labels_,
                    .correct = correct};
  if (options_.loss.takes_pairs()) {
    PreferenceStatistics sums;
    std::memcpy(&sums, &stats[pair_sums], sizeof sums);
    result.loss = mean_loss(options_.loss.kind, sums, pairs_, chosen_labels_);
    result.preference = mean_of(sums, pairs_, chosen_labels_);
  }
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
