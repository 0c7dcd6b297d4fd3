#include "nibble/model/trained_tokens.h"

#include "nibble/base/error.h"
#include "nibble/kernels/embedding.h"
#include "nibble/kernels/token_rows.h"
#include "nibble/model/frozen_weights.h"

namespace nibble {

TokenRows::TokenRows(gpu::Device& device, const DenseMatrix& table, std::span<const std::uint32_t> ids, std::span<const float> values, bool trainable)
    : table_(table) {
  const auto count = static_cast<std::uint32_t>(ids.size()), hidden = table.data.dim(1);
  check<UsageError>(values.size() == std::uint64_t{count} * hidden, "trained tokens", "The rows of {} tokens have {} values; the table's have {} each.", count,
                    values.size(), hidden);
  ids_ = device.tensor<std::uint32_t>(DType::u32, {count}, ids, "tokens");
  values_ = device.tensor<float>(DType::f32, {count, hidden}, values, "token rows");
  base_ = device.tensor(DType::f32, {count, hidden}, "base's token rows");
  gpu::Recorder recorder(device);
  record(recorder, Embedding{.tokens = ids_, .table = weight_of(table_), .x = base_});
  recorder.submit();
  if (!trainable) return;
  for (gpu::Tensor* tensor : {&gradient_, &first_, &second_}) *tensor = device.tensor(DType::f32, {count, hidden}, "token rows");
}

void TokenRows::show(gpu::Recorder& recorder, bool of_adapter) {
  if (std::exchange(of_adapter_, of_adapter) == of_adapter) return;
  record(recorder, WriteTokenRows{.rows = of_adapter ? values_ : base_, .ids = ids_, .table = weight_of(table_)});
}

void TokenRows::update(gpu::Recorder& recorder, const gpu::Tensor& norm_and_factor, const AdamWRule& rule) {
  record(recorder, AdamW{.weights = values_, .gradients = gradient_, .first_moment = first_, .second_moment = second_,
                         .norm_and_factor = norm_and_factor, .rule = rule});
  of_adapter_ = false;  // not as they now are
  show(recorder, true);
}

std::uint64_t TokenRows::bytes(std::size_t tokens, std::uint32_t hidden, bool trainable) {
  if (tokens == 0) return 0;
  const auto count = static_cast<std::uint32_t>(tokens);
  return gpu::buffer_bytes(DType::u32, {count}) + (trainable ? 5 : 2) * gpu::buffer_bytes(DType::f32, {count, hidden});
}

TrainedTokens::TrainedTokens(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LoraAdapter& adapter, bool trainable)
    : is_tied_(config.tie_word_embeddings) {
  const auto make = [&](std::optional<TokenRows>& rows, const DenseMatrix& table, const std::vector<std::uint32_t>& ids, const std::vector<float>& values) {
    if (!ids.empty()) rows.emplace(device, table, ids, values, trainable);
  };
  make(embedding_, weights.embedding, adapter.config.trained_tokens, adapter.token_rows);
  make(head_, weights.head, adapter.config.trained_head_tokens, adapter.head_rows);
}

bool TrainedTokens::trainable() const { return static_cast<bool>((embedding_ ? *embedding_ : *head_).gradient()); }

void TrainedTokens::show(gpu::Recorder& recorder, bool of_adapter) {
  if (embedding_) embedding_->show(recorder, of_adapter);
  if (head_) head_->show(recorder, of_adapter);
}

void TrainedTokens::clear_gradients(gpu::Recorder& recorder) {
  for (const gpu::Tensor& gradient : gradients()) recorder.clear(gradient);
}

HeadRowsGradient TrainedTokens::head_gradient() const {
  const std::optional<TokenRows>& rows = is_tied_ ? embedding_ : head_;
  return rows ? HeadRowsGradient{rows->ids(), rows->gradient()} : HeadRowsGradient{};
}

void TrainedTokens::add_embedding_gradient(gpu::Recorder& recorder, const gpu::Tensor& tokens, const gpu::Tensor& dx) const {
  if (!embedding_) return;
  record(recorder, EmbeddingBackward{.tokens = tokens, .dx = dx, .ids = embedding_->ids(), .d_rows = embedding_->gradient()});
}

std::vector<gpu::Tensor> TrainedTokens::gradients() const {
  std::vector<gpu::Tensor> all;
  for (const auto* rows : {&embedding_, &head_}) {
    if (*rows) all.push_back((*rows)->gradient());
  }
  return all;
}

void TrainedTokens::update(gpu::Recorder& recorder, const gpu::Tensor& norm_and_factor, const AdamWRule& rule) {
  if (embedding_) embedding_->update(recorder, norm_and_factor, rule);
  if (head_) head_->update(recorder, norm_and_factor, rule);
}

void TrainedTokens::read_rows(gpu::Device& device, LoraAdapter& adapter) const {
  if (embedding_) adapter.token_rows = device.read<float>(embedding_->values());
  if (head_) adapter.head_rows = device.read<float>(head_->values());
}

gpu::Tensor TrainedTokens::gradient_named(std::string_view name) const {
  if (embedding_ && name == peft_token_rows_name) return embedding_->gradient();
  return head_ && name == peft_head_rows_name ? head_->gradient() : gpu::Tensor{};
}

std::vector<std::pair<std::string, gpu::Tensor>> TrainedTokens::moments() const {
  std::vector<std::pair<std::string, gpu::Tensor>> all;
  const auto add = [&](const std::optional<TokenRows>& rows, std::string_view name) {
    if (!rows) return;
    all.emplace_back(fmt::format("exp_avg.{}", name), rows->first_moment());
    all.emplace_back(fmt::format("exp_avg_sq.{}", name), rows->second_moment());
  };
  add(embedding_, peft_token_rows_name);
  add(head_, peft_head_rows_name);
  return all;
}

std::uint64_t TrainedTokens::bytes(const ModelConfig& config, const LoraConfig& lora, bool trainable) {
  return TokenRows::bytes(lora.trained_tokens.size(), config.hidden_size, trainable) +
         TokenRows::bytes(lora.trained_head_tokens.size(), config.hidden_size, trainable);
}

}  // namespace nibble
