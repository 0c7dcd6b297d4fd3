#include "nibble/model/generator.h"

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/gpu/together.h"
#include "nibble/weights/layer_stream.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

namespace nibble {
namespace {

GeneratorOptions with_path(GeneratorOptions options, ProductPath path) {
  options.path = path;
  return options;
}

// Waking took some 0.09 ms with an H200: of a token that takes longer than this, less than a hundredth. And a software adapter needs the
// processor.
std::chrono::microseconds busy_wait(const gpu::AdapterInfo& info) {
  return info.type == gpu::AdapterType::software ? std::chrono::milliseconds(0) : std::chrono::milliseconds(10);
}

}  // namespace

Generator::Generator(const ModelState& state, const GeneratorOptions& given)
    : device_(state.device()),
      config_(state.config()),
      weights_(state.weights()),
      adapters_(state.has_lora() ? &state.lora_mirror() : nullptr),
      capacity_(text_capacity(config_, given)),
      rows_(key_capacity(config_, given)),
      lora_(adapters_ ? adapters_->on_device() : nullptr),
      sizes_(pass_sizes(device_, config_, with_path(given, state.path()), lora_ ? lora_->rank : 0, lora_ && lora_->use_dora)),
      head_(device_, config_, weights_, generator_head_options(state.path(), sizes_)),
      tokens_(state.trained_tokens()),
      seen_(std::max(given.sequences, 1u)),
      goes_ahead_(given.goes_ahead.value_or(device_.info().type != gpu::AdapterType::software)),
      draw_(device_.tensor(DType::f32, {1}, "draw")),
      logits_(seen_.size() * config_.vocab_size),
      passed_(seen_.size() > 1 ? std::size_t{sizes_.texts} * config_.vocab_size : 0),
      best_(make_best_scores_room(device_, sizes_.texts, config_.vocab_size)),
      found_(best_.found.size()),
      logits_readback_(device_, std::uint64_t{sizes_.texts} * config_.vocab_size * sizeof(float)),
      best_readbacks_{gpu::Readback(device_, best_.found.bytes()), gpu::Readback(device_, best_.found.bytes())} {
  const std::uint32_t rank = lora_ ? lora_->rank : 0;
  pieces_ = make_layers(device_, config_, weights_, lora_, pieces_options(state.path(), sizes_, rank, lora_ && lora_->use_dora));
  if (DecodeLayers::fits(config_, weights_)) {
    steps_.emplace(device_, config_, weights_, rank, sizes_.few);
  } else {
    sizes_.few = 0;
  }
  if (wants_step(device_, given)) step_ = StepLayers::make(device_, config_, weights_, lora_, state.path(), given.step_workgroups.value_or(0));
  const DType keys = cache_dtype(device_, config_, with_path(given, state.path()), rank, lora_ && lora_->use_dora);
  const std::uint32_t most = sizes_.most(), rows = sequences() * rows_;
  const auto make = [&](std::string_view label) {
    return gpu::tensors_together(device_, config_.num_layers, keys, {config_.num_kv_heads, rows, config_.head_dim}, label);
  };
  const std::vector<Tensor> k = make("keys"), v = make("values");
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) keys_.push_back({.k = k[layer], .v = v[layer]});
  if (!steps_ || keys_.front().k.bytes() > device_.info().limits.max_binding) {
    sizes_.texts = sizes_.joined = 1;
    step_.reset();  // which binds them whole too
  }
  stream_room_ = device_.tensor(DType::u32, {stream_parts * part_of_stream(most)}, "stream");
  for (Tensor& residual : residual_) residual = device_.tensor(DType::f32, {most, config_.hidden_size}, "residual");
  rotations_ = Rotations(device_, config_, capacity_, most);
}

void Generator::use_adapter(bool use) {
  const LoraWeights* wanted = use && adapters_ ? adapters_->on_device() : nullptr;
  if (wanted == lora_) return;
  head_.use_base(!use);
  lora_ = wanted;
  forget_steps();
  for (auto& seen : seen_) seen.clear();
}

// Every token attends to all of its text before it.
std::pair<Generator::Pass, std::vector<std::uint32_t>> Generator::plan(std::span<const Text> parts, std::uint32_t between) const {
  std::uint32_t count = 0, most = 0;
  for (const Text& part : parts) count += static_cast<std::uint32_t>(part.tokens.size());
  const std::uint32_t stride = part_of_stream(count);
  std::vector<std::uint32_t> values(std::size_t{stream_parts} * stride);
  const auto list = [&](std::size_t index) { return std::span(values).subspan(index * stride, stride); };
  const auto ids = list(0), position = list(1), begin = list(2), end = list(3), own_begin = list(4), own_end = list(5), rows = list(6);
  std::uint64_t pairs = 0;
  std::uint32_t t = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::uint32_t first = first_row(parts[i].sequence);
    for (std::uint32_t at = seen(parts[i].sequence) + between; const std::uint32_t token : parts[i].tokens) {
      ids[t] = token, position[t] = at, end[t] = first + ++at;
      const std::uint32_t met = config_.sliding_window > 0 ? std::min(at, config_.sliding_window) : at;
      begin[t] = end[t] - met;
      own_end[t] = t + 1, own_begin[t] = t + 1 - std::min(met, t + 1);
      pairs += met;
      most = std::max(most, met);
      ++t;
    }
    rows[i] = t - 1;
  }
  const auto view = [&](std::uint32_t index, std::size_t length) {
    return stream_room_.part(std::uint64_t{index} * stride, {static_cast<std::uint32_t>(length)});
  };
  const bool one_each = count == parts.size();
  const bool fresh = (parts.size() == 1 || !one_each) && seen(parts[0].sequence) == 0;
  const Pass pass{.stream = {.tokens = count, .labels = static_cast<std::uint32_t>(parts.size()), .pairs = pairs, .token_ids = view(0, count),
                     .position = view(1, count), .segment_begin = {}, .segment_end = {}, .key_begin = view(2, count),
                     .key_end = view(3, count), .query_end = {}, .own_key_begin = fresh ? view(4, count) : Tensor{},
                     .own_key_end = fresh ? view(5, count) : Tensor{}, .label_rows = view(6, parts.size()), .label_ids = {}, .sides = {}, .reference = {}},
          .first_key = end[0] - 1,
          .most_keys = most,
          .position = position[0],
          .few = count <= sizes_.few && (parts.size() == 1 || (one_each && (sizes_.on_matrices == 0 || count < sizes_.on_matrices))),
          .one = in_one_dispatch(parts),
          .one_each = one_each,
          .apart = parts.size() > 1};
  return {pass, std::move(values)};
}

Tensor Generator::run_layers(gpu::Recorder& recorder, const Pass& pass) {
  const DeviceStream& stream = pass.stream;
  const auto residual = [&](std::uint32_t layer) { return residual_[layer % 2].rows(0, stream.tokens); };
  weights_.go(LayerOrder::round);
  if (tokens_) tokens_->show(recorder, lora_ != nullptr);
  embed(recorder, weights_.embedding, stream.token_ids, residual(0));
  if (pass.few) {
    if (pass.one) {
      const StepLayers::Pass one{recorder, stream, rotations_, lora_, pass.first_key, pass.most_keys, pass.position};
      return step_->forward(one, keys_, {residual(0), residual(1)});
    }
    const DecodeLayers::Pass step{recorder, stream, rotations_, lora_, dora(), pass.first_key, pass.most_keys, pass.apart};
    for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
      steps_->forward(step, layer, residual(layer), residual(layer + 1), keys_[layer].k, keys_[layer].v);
    }
    return residual(config_.num_layers);
  }
  const LayerPass piece{.recorder = recorder, .stream = stream, .rotations = rotations_, .lora = lora_,
                        .same_lora = lora_ && lora_ == in_pieces_, .dora = dora(), .caches = keys_, .first_key = pass.first_key, .most_keys = pass.most_keys, .apart = pass.apart};
  pieces_->begin(piece);
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) pieces_->forward(piece, layer, residual(layer), residual(layer + 1));
  return residual(config_.num_layers);
}

void Generator::check_text(const Text& text) const {
  check(text.sequence < sequences(), "generator", "Place {} came; there are {}.", text.sequence, sequences());
  check<DataError>(!text.tokens.empty() && text.tokens.size() <= capacity_, "generator",
                   "A text of {} tokens came; there is room for 1 to {}.", text.tokens.size(), capacity_);
  for (const std::uint32_t token : text.tokens) {
    check<DataError>(token < config_.vocab_size, "generator", "Token {} came; the model's vocabulary ends at {}.", token,
                     config_.vocab_size - 1);
  }
}

void Generator::forget_changed_adapters() {
  if (!adapters_ || !lora_) return;
  adapters_->on_device();
  if (std::exchange(adapters_version_, adapters_->version()) == adapters_->version()) return;
  if (adapters_->dora()) adapters_->dora()->renew();
  in_pieces_ = nullptr;
  forget_steps();
  for (auto& seen : seen_) seen.clear();
}

std::span<float> Generator::logits_of(std::uint32_t sequence) {
  return std::span(logits_).subspan(std::size_t{sequence} * config_.vocab_size, config_.vocab_size);
}

// The id of what is chosen goes where the next step's is looked for.
Tensor Generator::record_pass(gpu::Recorder& recorder, const Pass& pass, const Wanted& wanted) {
  const Tensor x = run_layers(recorder, pass);
  if (wanted.of == Wanted::Of::nothing) return {};
  const Tensor logits = head_.logits(recorder, x, pass.stream.label_rows, pass.stream.labels);
  if (wanted.of == Wanted::Of::best) record(recorder, BestScores{logits, best_});
  if (wanted.choice) record(recorder, ChooseToken{best_, *wanted.choice, draw_, stream_room_.part(0, {1})});
  return logits;
}

Tensor Generator::submit(std::span<const Text> parts, const Wanted& wanted) {
  const auto [pass, values] = plan(parts);
  device_.write(stream_room_.part(0, {static_cast<std::uint32_t>(values.size())}), std::as_bytes(std::span(values)));
  if (wanted.choice) device_.write(draw_, std::as_bytes(std::span(draws_).first(1)));
  std::optional<Tensor> logits = submit_prepared(parts, wanted);
  if (!logits) {
    gpu::Recorder recorder(device_, pass.few || pass.one_each ? gpu::Pace::even : gpu::Pace::growing);
    logits = record_pass(recorder, pass, wanted);
    recorder.submit();
    if (!pass.few && lora_) in_pieces_ = lora_;
  }
  if (wanted.of == Wanted::Of::logits) logits_readback_.begin(*logits);
  if (wanted.of == Wanted::Of::best) best_readbacks_[0].begin(best_.found.rows(0, pass.stream.labels));
  return *logits;
}

bool Generator::run(std::span<const Text> parts, const Wanted& wanted) {
  std::optional<Tensor> logits = take_ahead(parts, wanted);
  if (!logits) {
    drop_ahead();
    logits = submit(parts, wanted);
  }
  for (const Text& part : parts) seen_[part.sequence].insert(seen_[part.sequence].end(), part.tokens.begin(), part.tokens.end());
  const bool one = in_one_dispatch(parts);
  if (wanted.of == Wanted::Of::nothing) return !one || !step_->in_trouble(device_);
  go_ahead(parts, wanted);
  bool finite;
  if (wanted.of == Wanted::Of::best) {
    const std::span<std::uint32_t> found = std::span(found_).first(parts.size() * best_list_words);
    best_readbacks_[0].finish(std::as_writable_bytes(found), busy_wait(device_.info()));
    last_logits_ = *logits;
    finite = is_finite(found);
    if (ahead_) ahead_->token = chosen_token(found);
  } else {
    const std::span<float> passed = parts.size() == 1 ? logits_of(parts[0].sequence) : std::span(passed_).first(parts.size() * config_.vocab_size);
    logits_readback_.finish(std::as_writable_bytes(passed), busy_wait(device_.info()));
    last_logits_ = {};
    finite = !std::isnan(passed[0]);
  }
  return !one || finite || !step_->in_trouble(device_);
}

void Generator::compute(std::span<const Text> parts, const Wanted& wanted) {
  if (!run(parts, wanted)) {
    log_warning("Workgroups of the GPU waited for each other in vain, as when it is shared with other work; tokens are computed in several dispatches a layer from here on, which takes longer.");
    forget_steps();
    step_.reset();
    for (const Text& part : parts) seen_[part.sequence].resize(seen_[part.sequence].size() - part.tokens.size());
    run(parts, wanted);
  }
  last_sequences_.clear();
  for (const Text& part : parts) {
    computed_ += part.tokens.size();
    if (wanted.of == Wanted::Of::best) last_sequences_.push_back(part.sequence);
  }
  for (std::size_t i = 0; wanted.of == Wanted::Of::logits && parts.size() > 1 && i < parts.size(); ++i) {
    std::copy_n(passed_.begin() + static_cast<std::ptrdiff_t>(i * config_.vocab_size), config_.vocab_size, logits_of(parts[i].sequence).begin());
  }
}

std::span<const float> Generator::logits(std::span<const std::uint32_t> tokens) {
  const Text text{0, tokens};
  return all_logits({&text, 1}).front();
}

void Generator::forget_what_changed(std::span<const Text> texts) {
  std::vector<std::uint32_t> mostly_new;
  for (const auto& [sequence, tokens] : texts) {
    std::vector<std::uint32_t>& seen = seen_[sequence];
    // The last token is always computed, since its logits are wanted.
    seen.erase(std::mismatch(seen.begin(), seen.end(), tokens.begin(), tokens.end() - 1).first, seen.end());
    if (tokens.size() > 1 && 2 * seen.size() < tokens.size()) mostly_new.push_back(sequence);
  }
  if (sizes_.joined < 2 || mostly_new.size() < 2) return;
  for (const std::uint32_t sequence : mostly_new) seen_[sequence].clear();
}

bool Generator::joins(std::span<const Text> parts, const Text& text) const {
  std::size_t tokens = text.tokens.size();
  for (const Text& part : parts) tokens += part.tokens.size();
  return seen(text.sequence) == 0 && text.tokens.size() > 1 && parts.size() < sizes_.joined && tokens <= sizes_.piece;
}

void Generator::compute_beginning(const Text& text) {
  const auto& [sequence, tokens] = text;
  while (tokens.size() - seen(sequence) > 1) {
    const std::size_t left = tokens.size() - seen(sequence);
    const std::size_t most = left <= sizes_.few ? sizes_.few : sizes_.piece;
    const Text part{sequence, tokens.subspan(seen(sequence), std::min(left, most))};
    compute({&part, 1}, {part.tokens.size() == left ? Wanted::Of::logits : Wanted::Of::nothing});
  }
}

std::vector<Generator::Text> Generator::compute_beginnings(std::span<const Text> texts) {
  for (const Text& text : texts) check_text(text);
  forget_changed_adapters();
  forget_what_changed(texts);
  std::vector<Text> last, joined;
  const auto compute_joined = [&] {
    if (joined.size() == 1) compute_beginning(joined.front());
    else if (!joined.empty()) compute(joined, {Wanted::Of::logits});
    joined.clear();
  };
  for (const Text& text : texts) {
    if (!joins(joined, text)) compute_joined();
    if (joins(joined, text)) {
      joined.push_back(text);
      continue;
    }
    compute_beginning(text);
    if (seen(text.sequence) < text.tokens.size()) last.push_back({text.sequence, text.tokens.last(1)});
  }
  compute_joined();
  return last;
}

std::vector<std::span<const float>> Generator::all_logits(std::span<const Text> texts) {
  const std::vector<Text> last = compute_beginnings(texts);
  for (std::size_t i = 0; i < last.size(); i += sizes_.texts) {
    compute(std::span(last).subspan(i, std::min<std::size_t>(sizes_.texts, last.size() - i)), {Wanted::Of::logits});
  }
  std::vector<std::span<const float>> result;
  for (const Text& text : texts) result.push_back(logits_of(text.sequence));
  return result;
}

std::vector<Generator::Next> Generator::next(std::span<const Text> texts, const std::optional<ForeseenTokens>& foreseen) {
  const bool all_at_once = texts.size() <= sizes_.texts;
  const std::vector<Text> last = all_at_once ? compute_beginnings(texts) : std::vector<Text>{};
  if (!all_at_once) all_logits(texts);
  Wanted wanted{Wanted::Of::best};
  if (foreseen && goes_ahead_ && last.size() == 1 && texts.size() == 1) {
    wanted.choice = foreseen->choice;
    draws_ = foreseen->draws;
  }
  if (!last.empty()) compute(last, wanted);
  std::vector<Next> result;
  for (const Text& text : texts) {
    const auto at = std::find_if(last.begin(), last.end(), [&](const Text& one) { return one.sequence == text.sequence; });
    std::optional<BestOfRow> best;
    if (at != last.end()) best = best_of(std::span(found_).subspan(static_cast<std::size_t>(at - last.begin()) * best_list_words, best_list_words));
    if (best) result.push_back({{}, *std::move(best)});
    else result.push_back({at == last.end() ? logits_of(text.sequence) : read_logits(text.sequence), {}});
  }
  return result;
}

std::span<const float> Generator::read_logits(std::uint32_t sequence) {
  const auto at = std::find(last_sequences_.begin(), last_sequences_.end(), sequence);
  check(last_logits_ && at != last_sequences_.end(), "generator", "The logits of place {} are not those of the last step.", sequence);
  const auto row = static_cast<std::uint32_t>(at - last_sequences_.begin());
  if (ahead_) compute_again(sequence);
  logits_readback_.begin(last_logits_.rows(row, row + 1));
  const std::span<float> logits = logits_of(sequence);
  logits_readback_.finish(std::as_writable_bytes(logits), busy_wait(device_.info()));
  return logits;
}

}  // namespace nibble
