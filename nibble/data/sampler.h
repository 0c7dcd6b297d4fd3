#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

namespace nibble::data {

// A run of examples, those of one file, that has its own share of an epoch.
struct Share {
  std::uint32_t examples = 0;
  double weight = 1;
};

struct SamplerOptions {
  bool shuffle = true;
  std::uint64_t seed = 0;
  std::uint32_t batch_size = 1;    // examples in a batch; with packing it counts streams of max_length tokens
  bool packing = false;            // as many examples as fit batch_size * max_length tokens, in order
  std::uint32_t max_length = 1024;  // no example is longer
  std::uint32_t look_ahead = 64;   // packing fills the rest of a batch from so many examples ahead
  std::vector<Share> shares = {};  // all examples in turn; none: each example once an epoch
};

// Where a run is in its data: all batches of the epochs before, and of this epoch so many batches, are used up.
struct Cursor {
  std::uint64_t epoch = 0;
  std::uint64_t batch = 0;

  bool operator==(const Cursor&) const = default;
};

nlohmann::json to_json(const Cursor& cursor);
// Throws DataError where it is not what to_json writes.
Cursor cursor_from_json(const nlohmann::json& json);

// Of `examples` drawn in proportion to the weights, how many each share gets: whole numbers with the same sum, the largest
// remainders rounded up. Throws UsageError where a share gets none.
std::vector<std::uint32_t> drawn_of(std::span<const Share> shares, std::uint32_t examples);

// Chooses the examples of each batch, epoch after epoch without end. Each epoch has every example once, or with shares as many
// as there are, drawn from each share in proportion to its weight; a share is gone through in an order of its own, again and
// again, and an epoch goes on in it where the one before stopped. The last batch of an epoch may be smaller. The order depends
// on options, lengths and epoch alone.
class Sampler {
 public:
  // `lengths`: tokens of each example, none above max_length. Throws UsageError otherwise, where there is none, and where
  // shares do not add up to them.
  Sampler(std::vector<std::uint32_t> lengths, const SamplerOptions& options);

  // The next batch's examples. The span holds until the next call.
  std::span<const std::uint32_t> next();

  Cursor cursor() const { return cursor_; }
  // Goes on with what comes at `cursor`. Throws DataError where the epoch has no such batch.
  void seek(const Cursor& cursor);

  std::uint64_t batches_in_epoch(std::uint64_t epoch) const;
  // Of the epochs 0 to epochs - 1 together.
  std::uint64_t batches_in(std::uint64_t epochs) const;

 private:
  struct Plan {
    std::vector<std::uint32_t> order;
    std::vector<std::size_t> begin;  // of each batch in `order`, and the end
  };

  Plan plan(std::uint64_t epoch) const;
  // The examples of an epoch before they are shuffled.
  std::vector<std::uint32_t> drawn(std::uint64_t epoch) const;
  std::vector<std::uint32_t> shuffled(std::uint64_t epoch) const;
  Plan packed(const std::vector<std::uint32_t>& order) const;

  std::vector<std::uint32_t> lengths_;
  SamplerOptions options_;
  std::vector<std::uint32_t> drawn_;  // of each share in an epoch
  Cursor cursor_;
  Plan plan_;  // of the cursor's epoch
};

}  // namespace nibble::data
