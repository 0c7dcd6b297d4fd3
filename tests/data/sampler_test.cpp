#include "nibble/data/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "nibble/base/error.h"
#include "nibble/base/rng.h"

namespace nibble::data::sampler_test {
namespace {

std::vector<std::uint32_t> some_lengths(std::size_t count, std::uint32_t longest) {
  Rng rng(3);
  std::vector<std::uint32_t> lengths(count);
  for (auto& length : lengths) length = 1 + rng.below(longest);
  return lengths;
}

using Batches = std::vector<std::vector<std::uint32_t>>;

Batches take(Sampler& sampler, std::uint64_t count) {
  Batches result;
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto batch = sampler.next();
    result.emplace_back(batch.begin(), batch.end());
  }
  return result;
}

std::vector<std::uint32_t> joined(const Batches& batches) {
  std::vector<std::uint32_t> result;
  for (const auto& batch : batches) result.insert(result.end(), batch.begin(), batch.end());
  return result;
}

TEST(Sampler, KeepsTheFilesOrderWithoutShuffle) {
  Sampler sampler(some_lengths(10, 9), {.shuffle = false, .batch_size = 4, .max_length = 9});
  const Batches batches = take(sampler, 4);
  EXPECT_EQ(batches[0], (std::vector<std::uint32_t>{0, 1, 2, 3}));
  EXPECT_EQ(batches[2], (std::vector<std::uint32_t>{8, 9}));  // the last one of the epoch is kept
  EXPECT_EQ(batches[3], (std::vector<std::uint32_t>{0, 1, 2, 3}));
  EXPECT_EQ(sampler.cursor(), (Cursor{.epoch = 1, .batch = 1}));
  EXPECT_EQ(sampler.batches_in(3), 9u);
}

class SamplerProperties : public ::testing::TestWithParam<std::tuple<bool, bool, std::size_t>> {
 protected:
  SamplerOptions options() const {
    return {.shuffle = std::get<0>(GetParam()),
            .seed = 11,
            .batch_size = 3,
            .packing = std::get<1>(GetParam()),
            .max_length = 50,
            .look_ahead = 8};
  }
  std::vector<std::uint32_t> lengths() const { return some_lengths(std::get<2>(GetParam()), 50); }
};

TEST_P(SamplerProperties, EachEpochHasEachExampleOnce) {
  Sampler sampler(lengths(), options());
  for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
    const Batches batches = take(sampler, sampler.batches_in_epoch(epoch));
    std::vector<std::uint32_t> seen = joined(batches);
    std::sort(seen.begin(), seen.end());
    std::vector<std::uint32_t> all(lengths().size());
    std::iota(all.begin(), all.end(), 0u);
    EXPECT_EQ(seen, all);
    for (const auto& batch : batches) {
      ASSERT_FALSE(batch.empty());
      EXPECT_TRUE(options().packing || batch.size() <= 3);
      std::uint64_t tokens = 0;
      for (const std::uint32_t i : batch) tokens += lengths()[i];
      EXPECT_LE(tokens, 150u);
    }
  }
  EXPECT_EQ(sampler.cursor().epoch, 2u);
}

TEST_P(SamplerProperties, ACursorGoesOnWithTheNextBatch) {
  Sampler whole(lengths(), options());
  const std::uint64_t total = whole.batches_in(3);
  const Batches expected = take(whole, total);
  for (std::uint64_t stop = 0; stop <= total; stop += 1 + total / 7) {
    Sampler first(lengths(), options());
    take(first, stop);
    const auto saved = nlohmann::json::parse(to_json(first.cursor()).dump());
    Sampler second(lengths(), options());
    second.seek(cursor_from_json(saved));
    EXPECT_EQ(take(second, total - stop), Batches(expected.begin() + static_cast<std::ptrdiff_t>(stop), expected.end()));
  }
}

TEST_P(SamplerProperties, TheSameSeedGivesTheSameOrder) {
  Sampler a(lengths(), options());
  Sampler b(lengths(), options());
  const std::uint64_t epoch = a.batches_in_epoch(0);
  EXPECT_EQ(take(a, epoch), take(b, epoch));
  if (!options().shuffle || lengths().size() < 10) return;
  SamplerOptions other_seed = options();
  other_seed.seed = 12;
  Sampler c(lengths(), other_seed);
  Sampler d(lengths(), options());
  const auto first = joined(take(d, epoch));
  EXPECT_NE(joined(take(c, c.batches_in_epoch(0))), first);
  EXPECT_NE(joined(take(d, d.batches_in_epoch(1))), first);  // another order in the next epoch
}

INSTANTIATE_TEST_SUITE_P(All, SamplerProperties,
                         ::testing::Combine(::testing::Bool(), ::testing::Bool(), ::testing::Values(1, 2, 100, 333)));

TEST(Sampler, PackingFillsFromAhead) {
  Sampler sampler({6, 7, 4, 3, 10}, {.shuffle = false, .batch_size = 1, .packing = true, .max_length = 10});
  const Batches batches = take(sampler, 3);
  EXPECT_EQ(batches, (Batches{{0, 2}, {1, 3}, {4}}));
  Sampler blind({6, 7, 4, 3, 10},
                {.shuffle = false, .batch_size = 1, .packing = true, .max_length = 10, .look_ahead = 1});
  EXPECT_EQ(take(blind, 4), (Batches{{0}, {1}, {2, 3}, {4}}));
}

TEST(Sampler, PackingWastesLittle) {
  Sampler sampler(some_lengths(2000, 256), {.shuffle = true, .seed = 1, .batch_size = 4, .packing = true,
                                            .max_length = 256});
  const auto lengths = some_lengths(2000, 256);
  const std::uint64_t tokens = std::accumulate(lengths.begin(), lengths.end(), std::uint64_t{0});
  const std::uint64_t least = (tokens + 1023) / 1024;
  EXPECT_LE(sampler.batches_in_epoch(0), least + least / 50);
}

// 10 examples of the first file, 90 of the second.
SamplerOptions with_shares(double first, double second, bool shuffle = true) {
  return {.shuffle = shuffle, .seed = 5, .batch_size = 8, .max_length = 50, .shares = {{10, first}, {90, second}}};
}

TEST(SamplerShares, AnEpochDrawsInProportion) {
  for (const bool packing : {false, true}) {
    SamplerOptions options = with_shares(0.7, 0.3);
    options.packing = packing;
    Sampler sampler(some_lengths(100, 50), options);
    std::vector<int> times(100);
    for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
      const auto drawn = joined(take(sampler, sampler.batches_in_epoch(epoch)));
      ASSERT_EQ(drawn.size(), 100u);
      EXPECT_EQ(std::count_if(drawn.begin(), drawn.end(), [](std::uint32_t i) { return i < 10; }), 70);
      for (const std::uint32_t i : drawn) ++times[i];
      EXPECT_FALSE(std::is_sorted(drawn.begin(), drawn.end()));
    }
    // 210 draws of 10, and 90 of 90: each example as often as any other of its file.
    for (std::size_t i = 0; i < times.size(); ++i) EXPECT_EQ(times[i], i < 10 ? 21 : 1) << i;
  }
}

TEST(SamplerShares, ACursorGoesOnAcrossEpochs) {
  Sampler whole(some_lengths(100, 50), with_shares(1, 2));
  const std::uint64_t total = whole.batches_in(4);
  const Batches expected = take(whole, total);
  for (const std::uint64_t stop : {0u, 5u, 13u, 30u, 51u}) {
    Sampler first(some_lengths(100, 50), with_shares(1, 2)), second(some_lengths(100, 50), with_shares(1, 2));
    take(first, stop);
    second.seek(first.cursor());
    EXPECT_EQ(take(second, total - stop), Batches(expected.begin() + static_cast<std::ptrdiff_t>(stop), expected.end()));
  }
}

TEST(SamplerShares, WithoutShuffleFilesAreSpreadEvenlyInTheirOrder) {
  Sampler sampler(some_lengths(100, 50), with_shares(0.2, 0.8, false));
  const auto drawn = joined(take(sampler, sampler.batches_in_epoch(0)));
  std::vector<std::uint32_t> of_first;
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    if (drawn[i] < 10) of_first.push_back(drawn[i]);
    EXPECT_NEAR(static_cast<double>(of_first.size()), 0.2 * static_cast<double>(i + 1), 1.0) << i;
  }
  EXPECT_EQ(of_first, (std::vector<std::uint32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
}

TEST(SamplerShares, RoundToWholeExamples) {
  const std::vector<Share> thirds{{1, 1}, {1, 1}, {1, 1}};
  EXPECT_EQ(drawn_of(thirds, 10), (std::vector<std::uint32_t>{4, 3, 3}));
  EXPECT_THROW(drawn_of(std::vector<Share>{{5, 1e-9}, {5, 1}}, 10), UsageError);
  EXPECT_THROW(Sampler(some_lengths(99, 50), with_shares(1, 1)), UsageError);
}

TEST(Sampler, RefusesWhatCannotBe) {
  EXPECT_THROW(Sampler({}, {}), UsageError);
  EXPECT_THROW(Sampler({5}, {.max_length = 4}), UsageError);
  EXPECT_THROW(Sampler({5}, {.batch_size = 0}), UsageError);
  Sampler sampler({5, 5}, {});
  EXPECT_THROW(sampler.seek({.epoch = 0, .batch = 3}), DataError);
  for (const char* text : {"{}", "[]", "3", R"({"epoch": -1, "batch": 0})", R"({"epoch": 1})",
                           R"({"epoch": "1", "batch": 0})", R"({"epoch": 1.5, "batch": 0})"}) {
    EXPECT_THROW(cursor_from_json(nlohmann::json::parse(text)), DataError) << text;
  }
}

}  // namespace
}  // namespace nibble::data::sampler_test
