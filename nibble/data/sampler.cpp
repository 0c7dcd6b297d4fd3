#include "nibble/data/sampler.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "nibble/base/error.h"
#include "nibble/base/rng.h"

namespace nibble::data {
namespace {

constexpr std::string_view in_sampler = "sampler";
// Keeps the streams of the shuffles apart from any other use of the seed.
constexpr std::uint64_t shuffle_stream = std::uint64_t{0x5a} << 56;
constexpr std::uint64_t share_stream = std::uint64_t{0x5b} << 56;

// Fisher and Yates' shuffle.
void shuffle(std::span<std::uint32_t> order, Rng rng) {
  for (std::size_t i = order.size() - 1; i > 0; --i) {
    std::swap(order[i], order[rng.below(static_cast<std::uint32_t>(i) + 1)]);
  }
}

}  // namespace

nlohmann::json to_json(const Cursor& cursor) { return {{"epoch", cursor.epoch}, {"batch", cursor.batch}}; }

Cursor cursor_from_json(const nlohmann::json& json) {
  const auto number = [&](const char* key) {
    const bool whole = json.is_object() && json.contains(key) && json[key].is_number_unsigned();
    check<DataError>(whole, in_sampler, "The cursor needs \"{}\", an integer of at least 0.", key);
    return json[key].get<std::uint64_t>();
  };
  return {.epoch = number("epoch"), .batch = number("batch")};
}

std::vector<std::uint32_t> drawn_of(std::span<const Share> shares, std::uint32_t examples) {
  double total = 0;
  for (const Share& share : shares) total += share.weight;
  std::vector<std::uint32_t> result;
  std::vector<double> rest;
  std::uint32_t left = examples;
  for (const Share& share : shares) {
    const double exact = share.weight / total * examples;
    result.push_back(std::min(left, static_cast<std::uint32_t>(exact)));
    rest.push_back(exact - result.back());
    left -= result.back();
  }
  for (; left > 0; --left) {
    const auto most = std::max_element(rest.begin(), rest.end()) - rest.begin();
    ++result[static_cast<std::size_t>(most)];
    rest[static_cast<std::size_t>(most)] -= 1;
  }
  for (std::size_t i = 0; i < result.size(); ++i) {
    check<UsageError>(result[i] > 0, "--data",
                      "The weight {} of file {} is too small beside {} in all: of an epoch's {} examples it gets none.",
                      shares[i].weight, i + 1, total, examples);
  }
  return result;
}

Sampler::Sampler(std::vector<std::uint32_t> lengths, const SamplerOptions& options)
    : lengths_(std::move(lengths)), options_(options) {
  check<UsageError>(!lengths_.empty(), in_sampler, "There is no example to choose from.");
  check<UsageError>(lengths_.size() <= std::numeric_limits<std::uint32_t>::max(), in_sampler,
                    "There are {} examples, at most 2^32 - 1 are possible.", lengths_.size());
  check<UsageError>(options_.batch_size > 0 && options_.max_length > 0, in_sampler,
                    "The batch size ({}) and the length ({}) are at least 1.", options_.batch_size,
                    options_.max_length);
  const std::uint32_t longest = *std::max_element(lengths_.begin(), lengths_.end());
  check<UsageError>(longest <= options_.max_length, in_sampler, "An example has {} tokens, at most {} are allowed.", longest,
                    options_.max_length);
  if (!options_.shares.empty()) {
    std::uint64_t sum = 0;
    for (const Share& share : options_.shares) {
      check<UsageError>(share.examples > 0 && share.weight > 0, in_sampler, "A share of {} examples and the weight {} cannot be drawn from.",
                        share.examples, share.weight);
      sum += share.examples;
    }
    check<UsageError>(sum == lengths_.size(), in_sampler, "The shares have {} examples, but there are {}.", sum, lengths_.size());
    drawn_ = drawn_of(options_.shares, static_cast<std::uint32_t>(lengths_.size()));
  }
  plan_ = plan(0);
}

std::span<const std::uint32_t> Sampler::next() {
  if (cursor_.batch + 1 == plan_.begin.size()) {
    plan_ = plan(cursor_.epoch + 1);
    cursor_ = {.epoch = cursor_.epoch + 1, .batch = 0};
  }
  const std::size_t begin = plan_.begin[cursor_.batch];
  const std::size_t end = plan_.begin[++cursor_.batch];
  return std::span(plan_.order).subspan(begin, end - begin);
}

void Sampler::seek(const Cursor& cursor) {
  Plan wanted = plan(cursor.epoch);
  check<DataError>(cursor.batch < wanted.begin.size(), in_sampler, "Epoch {} has {} batches, the cursor stands at {}.",
                   cursor.epoch, wanted.begin.size() - 1, cursor.batch);
  plan_ = std::move(wanted);
  cursor_ = cursor;
}

std::uint64_t Sampler::batches_in_epoch(std::uint64_t epoch) const {
  const std::uint64_t rows = lengths_.size();
  if (!options_.packing) return (rows + options_.batch_size - 1) / options_.batch_size;
  return plan(epoch).begin.size() - 1;
}

std::uint64_t Sampler::batches_in(std::uint64_t epochs) const {
  const bool alike = !options_.packing || !options_.shuffle;
  if (alike) return epochs * batches_in_epoch(0);
  std::uint64_t total = 0;
  for (std::uint64_t epoch = 0; epoch < epochs; ++epoch) total += batches_in_epoch(epoch);
  return total;
}

// In their order, those of several shares spread evenly among each other.
std::vector<std::uint32_t> Sampler::drawn(std::uint64_t epoch) const {
  std::vector<std::uint32_t> order(lengths_.size());
  std::iota(order.begin(), order.end(), 0u);
  if (drawn_.empty()) return order;
  std::vector<std::pair<double, std::uint32_t>> placed;
  std::uint32_t first = 0;
  for (std::size_t i = 0; i < drawn_.size(); ++i) {
    const std::uint32_t size = options_.shares[i].examples;
    std::vector<std::uint32_t> pass(size);
    for (std::uint32_t k = 0; k < drawn_[i]; ++k) {
      const std::uint64_t at = epoch * drawn_[i] + k;
      if (k == 0 || at % size == 0) {
        std::iota(pass.begin(), pass.end(), first);
        if (options_.shuffle) shuffle(pass, Rng(options_.seed, share_stream + (std::uint64_t{i} << 40) + at / size));
      }
      placed.emplace_back((k + 0.5) / drawn_[i], pass[at % size]);
    }
    first += size;
  }
  std::stable_sort(placed.begin(), placed.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::transform(placed.begin(), placed.end(), order.begin(), [](const auto& one) { return one.second; });
  return order;
}

std::vector<std::uint32_t> Sampler::shuffled(std::uint64_t epoch) const {
  std::vector<std::uint32_t> order = drawn(epoch);
  if (options_.shuffle) shuffle(order, Rng(options_.seed, shuffle_stream + epoch));
  return order;
}

Sampler::Plan Sampler::plan(std::uint64_t epoch) const {
  Plan result;
  result.order = shuffled(epoch);
  if (options_.packing) return packed(result.order);
  for (std::size_t begin = 0; begin < result.order.size(); begin += options_.batch_size) result.begin.push_back(begin);
  result.begin.push_back(result.order.size());
  return result;
}

// Each batch takes the first waiting example and then, in order, every one of the next `look_ahead` that still fits.
Sampler::Plan Sampler::packed(const std::vector<std::uint32_t>& order) const {
  const std::uint64_t capacity = std::uint64_t{options_.batch_size} * options_.max_length;
  const std::size_t window = std::max(options_.look_ahead, 1u);
  Plan result;
  result.order.reserve(order.size());
  std::vector<std::uint32_t> waiting;
  std::size_t next = 0;
  while (result.order.size() < order.size()) {
    result.begin.push_back(result.order.size());
    std::uint64_t room = capacity;
    for (std::size_t i = 0;;) {
      while (waiting.size() < window && next < order.size()) waiting.push_back(order[next++]);
      if (i == waiting.size()) break;
      const std::uint32_t length = lengths_[waiting[i]];
      if (length > room) {
        ++i;
        continue;
      }
      room -= length;
      result.order.push_back(waiting[i]);
      waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  result.begin.push_back(result.order.size());
  return result;
}

}  // namespace nibble::data
