#include "nibble/model/generator.h"

#include <algorithm>
#include <utility>

// Steps that a Generator records, or submits, before they are asked for.
namespace nibble {
namespace {

// Of a step whose tokens are not known yet.
constexpr std::uint32_t any_token = 0;

bool one_each(std::span<const Generator::Text> parts) {
  return std::all_of(parts.begin(), parts.end(), [](const Generator::Text& part) { return part.tokens.size() == 1; });
}

std::vector<Generator::Text> following(std::span<const Generator::Text> parts) {
  std::vector<Generator::Text> next;
  for (const Generator::Text& part : parts) next.push_back({part.sequence, {&any_token, 1}});
  return next;
}

}  // namespace

std::vector<std::uint32_t> Generator::places_of(std::span<const Text> parts, std::uint32_t between) const {
  std::vector<std::uint32_t> places;
  for (const Text& part : parts) places.insert(places.end(), {part.sequence, seen(part.sequence) + between});
  return places;
}

// After a step of the same texts, one token each. A change of the adapter forgets what was seen, and with it the places.
// What the rooms of streamed and of decoded weights and scales hold is noted as it is recorded, so passes through these must be submitted.
void Generator::prepare_next(std::span<const Text> parts, const Wanted& wanted, std::uint32_t between) {
  prepared_.reset();
  const bool room = std::all_of(parts.begin(), parts.end(), [&](const Text& part) { return seen(part.sequence) + between < capacity_; });
  if (!steps_ || weights_.stream || weights_.scales || head_.in_slices() || !one_each(parts) || !room) return;
  const std::vector<Text> next = following(parts);
  Prepared prepared{.places = places_of(next, between), .recorder = std::make_unique<gpu::Recorder>(device_, gpu::Pace::held), .wanted = wanted, .logits = {}};
  prepared.logits = record_pass(*prepared.recorder, plan(next, between).first, wanted);
  prepared.recorder->encode();
  prepared_ = std::move(prepared);
}

std::optional<Tensor> Generator::submit_prepared(std::span<const Text> parts, const Wanted& wanted) {
  if (wanted.of == Wanted::Of::nothing) return {};
  const auto prepared = std::exchange(prepared_, {});
  if (!prepared || !one_each(parts) || prepared->wanted != wanted || prepared->places != places_of(parts)) return {};
  prepared->recorder->submit();
  return prepared->logits;
}

std::optional<Tensor> Generator::take_ahead(std::span<const Text> parts, const Wanted& wanted) {
  if (!ahead_ || wanted.of != Wanted::Of::best || !one_each(parts) || ahead_->places != places_of(parts) || parts[0].tokens[0] != ahead_->token) return {};
  std::swap(best_readbacks_[0], best_readbacks_[1]);
  ++computed_ahead_;
  return std::exchange(ahead_, {})->logits;
}

// All but the id, which the step before writes.
void Generator::go_ahead(std::span<const Text> parts, const Wanted& wanted) {
  if (!wanted.choice) return prepare_next(parts, wanted);
  const std::vector<Text> next = following(parts);
  std::vector<std::uint32_t> places = places_of(next);
  if (!prepared_ || prepared_->wanted != wanted || prepared_->places != places) prepare_next(parts, wanted);
  if (!prepared_) return;
  const std::vector<std::uint32_t> values = plan(next).second;
  constexpr std::uint32_t ids = part_of_stream(1);
  const auto rest = static_cast<std::uint32_t>(values.size()) - ids;
  device_.write(stream_room_.part(ids, {rest}), std::as_bytes(std::span(values).last(rest)));
  device_.write(draw_, std::as_bytes(std::span(draws_).last(1)));
  ahead_ = Ahead{.places = std::move(places), .token = {}, .logits = *submit_prepared(next, wanted)};
  best_readbacks_[1].begin(best_.found.rows(0, 1));
  prepare_next(parts, wanted, 1);
}

// Its logits lie where the last step's did.
void Generator::drop_ahead() {
  if (!std::exchange(ahead_, {})) return;
  last_logits_ = {};
  best_readbacks_[1].finish(std::as_writable_bytes(std::span(found_).first(best_list_words)));
}

void Generator::forget_steps() {
  prepared_.reset();
  drop_ahead();
}

void Generator::compute_again(std::uint32_t sequence) {
  const std::uint32_t token = seen_[sequence].back();
  seen_[sequence].pop_back();
  const Text text{sequence, {&token, 1}};
  compute({&text, 1}, {Wanted::Of::best});
  --computed_;
}

}  // namespace nibble
