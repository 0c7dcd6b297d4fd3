#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/model/model_state.h"

// The head of ModelState.
namespace nibble {
namespace {

// Random values, for weights that are made up.
MatrixSource made_up_head(const ModelConfig& config) {
  return {.rows = config.vocab_size, .columns = config.hidden_size, .read = [config](const PieceSink& sink) {
            Rng rng(config.vocab_size);
            std::vector<float> row(config.hidden_size);
            for (std::uint32_t i = 0; i < config.vocab_size; ++i) {
              for (float& value : row) value = rng.uniform(-0.035f, 0.035f);
              sink(row, std::uint64_t{i} * config.hidden_size);
            }
          }};
}

std::vector<float> all_of(const MatrixSource& source) {
  std::vector<float> values;
  values.reserve(source.size());
  source.read([&](std::span<const float> piece, std::uint64_t) { values.insert(values.end(), piece.begin(), piece.end()); });
  return values;
}

}  // namespace

MatrixSource ModelState::first_head() const {
  if (adapter_head_) return *adapter_head_;
  if (!files_) return made_up_head(config_);
  return source_of(files_->at(config_.tie_word_embeddings ? embedding_tensor_name : head_tensor_name));
}

void ModelState::train_head(TrainedHeadOptions options) {
  options.path = path_;
  const MatrixSource values = first_head();
  // What was there is let go first.
  trained_head_.reset();
  weights_->head = {};
  if (!config_.tie_word_embeddings) weights_->base_head = {};
  trained_head_ = std::make_unique<TrainedHead>(*device_, values, options, weights_->head);
  host_head_.clear();
}

const std::vector<float>& ModelState::lm_head() const {
  const std::uint64_t updates = trained_head_ ? trained_head_->updates() : 0;
  if (host_head_.empty() || updates != host_head_updates_) host_head_ = all_of(trained_head_ ? trained_head_->values() : first_head());
  host_head_updates_ = updates;
  return host_head_;
}

std::vector<float> ModelState::lm_head_m() const {
  return trained_head_ ? all_of(trained_head_->first_moment()) : std::vector<float>();
}

std::vector<float> ModelState::lm_head_v() const {
  return trained_head_ ? all_of(trained_head_->second_moment()) : std::vector<float>();
}

}  // namespace nibble
