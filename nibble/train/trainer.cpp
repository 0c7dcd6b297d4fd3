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

Trainer::Begun Trainer::count(std::span<const TokenStream> batches) const {
  Begun counts;
  for (const TokenStream& batch : batches) {
    counts.labels += batch.labels.size();
    counts.pairs += batch.sides.size() / 2;
    for (std::size_t i = 0; i + 1 < batch.sides.size(); i += 2) counts.chosen_labels += batch.sides[i + 1] - batch.sides[i];
    check<UsageError>(options_.loss.takes_pairs() == !batch.sides.empty(), "trainer", "The loss {} takes {}.",
                      name_of(options_.loss.kind), options_.loss.takes_pairs() ? "pairs of answers" : "no pairs of answers");
    check<UsageError>(options_.loss.kind != TrainLoss::dpo || !batch.reference.empty(), "trainer",
                      "DPO needs the reference's log-probabilities of the pairs.");
  }
  check<UsageError>(counts.labels > 0, "trainer", "The {} batches of the update have no label to learn.", batches.size());
  return counts;
}

std::size_t Trainer::steps_ahead() const {
  const auto& stream = state_.weights().stream;
  return state_.trained_head() || (stream && stream->disk()) ? 0 : 1;
}

void Trainer::begin_step(std::span<const TokenStream> batches, double learning_rate) {
  check<UsageError>(begun_.size() <= steps_ahead(), "trainer", "{} updates have begun and not ended; there may be {}.",
                    begun_.size(), steps_ahead() + 1);
  Begun begun = count(batches);
  model();
  const LoraWeights& lora = *state_.lora_mirror().train();
  gpu::Recorder recorder(state_.device());
  record_gradients(recorder, batches, begun);
  in_doubt_ = true;
  optimizer_.record_step(recorder, lora, state_.lora_mirror().moments(), learning_rate, state_.step + begun_.size() + 1, state_.trained_head(),
                         state_.trained_tokens());
  recorder.copy(optimizer_.norm_and_factor(), stats_.part(2, {2}));
  recorder.submit();
  if (readbacks_.empty()) readbacks_.emplace_back(state_.device(), stats_.bytes());
  begun.statistics = std::move(readbacks_.back());
  readbacks_.pop_back();
  begun.statistics->begin(stats_);
  begun_.push_back(std::move(begun));
  in_doubt_ = false;
}

void Trainer::find_gradients(std::span<const TokenStream> batches) {
  check<UsageError>(begun_.empty(), "trainer", "Updates have begun and not ended.");
  model();
  gpu::Recorder recorder(state_.device());
  record_gradients(recorder, batches, count(batches));
}

void Trainer::record_gradients(gpu::Recorder& recorder, std::span<const TokenStream> batches, const Begun& counts) {
  recorder.clear(state_.lora_mirror().on_device()->grads);
  if (TrainedHead* head = state_.trained_head()) recorder.clear(head->gradient());
  if (TrainedTokens* tokens = state_.trained_tokens()) tokens->clear_gradients(recorder);
  for (std::size_t i = 0; i < batches.size(); ++i) record_batch(recorder, batches[i], counts, i);
}

Tensor Trainer::head_gradient() const {
  const TrainedHead* head = state_.trained_head();
  return head ? head->gradient() : Tensor{};
}

void Trainer::record_batch(gpu::Recorder& recorder, const TokenStream& batch, const Begun& counts, std::size_t index) {
  const DeviceStream stream = model_->upload(recorder, batch);
  const std::uint64_t step = state_.step + begun_.size();
  const TrainingNoise noise{.dropout = {.probability = static_cast<float>(options_.lora_dropout),
                                        .seed = draw(Draw::dropout, options_.seed, step, index)},
                            .neftune = {.alpha = static_cast<float>(options_.neftune_alpha),
                                        .seed = draw(Draw::noise, options_.seed, step, index)}};
  if (options_.loss.takes_pairs()) {
    record_pairs(recorder, stream, counts, noise, index > 0);
  } else {
    record_loss(recorder, stream, counts, noise, index > 0);
  }
}

// Divided by the labels of the whole update, so that accumulation gives the gradient of one large batch.
void Trainer::record_loss(gpu::Recorder& recorder, const DeviceStream& stream, const Begun& counts, const TrainingNoise& noise,
                          bool accumulate) {
  const LossOptions options{.factor = 1.0f / static_cast<float>(counts.labels),
                            .focal_gamma = static_cast<float>(options_.loss.focal_gamma)};
  const Head::Loss loss = model_->loss_and_gradients(recorder, stream, options, noise, head_gradient());
  record(recorder, Sum{.x = loss.loss, .total = stats_, .slot = 0, .accumulate = accumulate});
  record(recorder, Sum{.x = loss.correct, .total = stats_, .slot = 1, .accumulate = accumulate});
}

// Divided by the pairs of the whole update likewise, and ORPO's likelihood by its chosen labels.
void Trainer::record_pairs(gpu::Recorder& recorder, const DeviceStream& stream, const Begun& counts, const TrainingNoise& noise,
                           bool accumulate) {
  const std::uint32_t pairs = stream.sides.dim(0) / 2;
  if (!pair_statistics_ || pair_statistics_.dim(0) < pairs) {
    pair_statistics_ = state_.device().tensor(DType::f32, {pairs, preference_statistics}, "pair statistics");
  }
  Preference preference = preference_of(options_.loss, stream);
  preference.statistics = pair_statistics_.rows(0, pairs);
  preference.pair_factor = 1.0f / static_cast<float>(counts.pairs);
  if (options_.loss.kind == TrainLoss::orpo) preference.token_factor = 1.0f / static_cast<float>(counts.chosen_labels);
  const Head::Loss loss = model_->loss_and_gradients(recorder, stream, {.preference = &preference}, noise, head_gradient());
  record(recorder, PreferenceTotal{.statistics = preference.statistics, .total = stats_.part(pair_sums, {preference_statistics}),
                                   .accumulate = accumulate});
  record(recorder, Sum{.x = loss.correct, .total = stats_, .slot = 1, .accumulate = accumulate});
}

StepResult Trainer::end_step() {
  check<UsageError>(!begun_.empty(), "trainer", "No update has begun.");
  std::vector<float> statistics(stats_.size());
  const auto take = [&](Begun& from) {
    from.statistics->finish(std::as_writable_bytes(std::span(statistics)));
    readbacks_.push_back(std::move(*from.statistics));
  };
  take(begun_.front());
  const Begun begun = std::move(begun_.front());
  begun_.pop_front();
  if (TrainedHead* head = state_.trained_head()) head->settle();
  const StepResult result = result_of(begun, statistics);
  if (std::isfinite(result.loss) && std::isfinite(result.grad_norm)) {
    ++state_.step;
    return result;
  }
  for (Begun& later : begun_) take(later);
  begun_.clear();
  optimizer_.forgive();
  return result;
}

StepResult Trainer::result_of(const Begun& begun, std::span<const float> stats) const {
  std::uint32_t correct = 0;
  std::memcpy(&correct, &stats[1], sizeof correct);
  StepResult result{.loss = stats[0] / static_cast<double>(begun.labels), .grad_norm = stats[2], .labels = begun.labels,
                    .correct = correct};
  if (options_.loss.takes_pairs()) {
    PreferenceStatistics sums;
    std::memcpy(&sums, &stats[pair_sums], sizeof sums);
    result.loss = mean_loss(options_.loss.kind, sums, begun.pairs, begun.chosen_labels);
    result.preference = mean_of(sums, begun.pairs, begun.chosen_labels);
  }
  return result;
}

StepResult Trainer::full_train_step(std::span<const TokenStream> batches, double learning_rate) {
  check<UsageError>(begun_.empty(), "trainer", "Updates have begun and not ended.");
  const std::uint64_t before = state_.step;
  begin_step(batches, learning_rate);
  const StepResult result = end_step();
  check<Diverged>(state_.step > before, "trainer",
                  "Update {}: the loss is {} and the gradient norm {}; lower the learning rate or look at the batch.", before + 1,
                  result.loss, result.grad_norm);
  return result;
}

}  // namespace nibble
