#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/io/safetensors.h"
#include "nibble/model/model_state.h"

#include <algorithm>
#include <array>
#include <cmath>

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
  check<UsageError>(!trained_tokens_, "model state", "The whole head cannot be trained where rows of tokens are an adapter's own.");
  options.path = path_;
  const MatrixSource values = first_head();
  // What was there is let go first.
  trained_head_.reset();
  weights_->head = {};
  weights_->head.rows = config_.vocab_size;
  weights_->head.columns = config_.hidden_size;
  if (!config_.tie_word_embeddings) weights_->base_head = {};
  trained_head_ = std::make_unique<TrainedHead>(*device_, values, options, weights_->head);
  host_head_.clear();
}

const std::vector<float>& ModelState::lm_head() const {
  const std::uint64_t version = trained_head_ ? trained_head_->version() : 0;
  if (host_head_.empty() || version != host_head_version_) {
    host_head_ = all_of(trained_head_ ? trained_head_->values() : first_head());
  }
  host_head_version_ = version;
  return host_head_;
}

std::vector<float> ModelState::lm_head_m() const {
  return trained_head_ ? all_of(trained_head_->first_moment()) : std::vector<float>();
}

std::vector<float> ModelState::lm_head_v() const {
  return trained_head_ ? all_of(trained_head_->second_moment()) : std::vector<float>();
}

// The head of a one-file checkpoint lies beside it.
std::filesystem::path ModelState::head_file_of(const std::filesystem::path& checkpoint) {
  std::filesystem::path path = checkpoint;
  return path.replace_extension(".lm_head.safetensors");
}

void ModelState::save_head(const std::filesystem::path& path) const {
  const MatrixSource values = trained_head_->values();
  Moments& moments = trained_head_->moments();
  const std::array parts{trained_head_->moment_part()};
  const auto tensors = moments.tensors(parts);
  std::vector<TensorSpec> specs;
  for (const MomentTensor& tensor : tensors) specs.push_back(tensor.spec());
  specs.push_back({.name = std::string(head_tensor_name), .dtype = DType::f32, .shape = {values.rows, values.columns}});
  SafetensorsWriter writer(path, specs);
  for (const TensorSpec& spec : writer.tensors()) {
    if (spec.name == head_tensor_name) {
      values.read([&](std::span<const float> piece, std::uint64_t first) {
        const auto bad = std::find_if(piece.begin(), piece.end(), [](float value) { return !std::isfinite(value); });
        check<DataError>(bad == piece.end(), path.string(), "The head holds a value that is not finite, at index {}.",
                         first + static_cast<std::uint64_t>(bad - piece.begin()));
        writer.append(std::as_bytes(piece));
      });
    }
    const auto moment = std::find_if(tensors.begin(), tensors.end(), [&](const MomentTensor& tensor) { return tensor.name == spec.name; });
    if (moment != tensors.end()) moments.read(*moment, [&](std::span<const std::byte> piece) { writer.append(piece); });
  }
  writer.finish();
}

void ModelState::load_head(const std::filesystem::path& path) {
  const auto file = std::make_shared<const SafetensorsFile>(path);
  const TensorInfo& tensor = file->at(head_tensor_name);
  const Shape expected{config_.vocab_size, config_.hidden_size};
  check<DataError>(tensor.shape == expected && tensor.dtype == DType::f32, path.string(),
                   "The tensor {} is {} {}; the model's head is F32 {}.", tensor.name, tensor.dtype_name, to_string(tensor.shape),
                   to_string(expected));
  const MatrixSource values = source_of(file, tensor);
  values.read([](std::span<const float>, std::uint64_t) {});  // throws where one is not finite, before anything changes
  trained_head_->moments().load(*file, std::array{trained_head_->moment_part()});
  trained_head_->set_values(values);
}

}  // namespace nibble
