#include "nibble/kernels/choose_token.h"

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "tests/support/gpu_test.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace nibble::choose_token_test {
namespace {

using Scores = std::vector<ScoredToken>;

std::vector<std::uint32_t> list_of(const Scores& scores) {
  std::vector<std::uint32_t> list(best_list_words, 0xdeadbeef);
  list[0] = static_cast<std::uint32_t>(scores.size()), list[2] = 1;
  for (std::size_t i = 0; i < scores.size() && i < best_list_room; ++i) {
    list[best_list_header + 2 * i] = scores[i].id;
    list[best_list_header + 2 * i + 1] = std::bit_cast<std::uint32_t>(scores[i].score);
  }
  return list;
}

// The definition, from the sorted scores, in double.
std::uint32_t expected(Scores scores, const SamplingRule& choice, double draw) {
  std::sort(scores.begin(), scores.end(), [](const auto& a, const auto& b) { return a.score != b.score ? a.score > b.score : a.id < b.id; });
  if (choice.temperature == 0) return scores[0].id;
  const float largest = scores[0].score;
  const auto weight = [&](const ScoredToken& one) { return std::exp((double{one.score} - largest) / choice.temperature); };
  if (choice.top_k < scores.size()) {
    const float least = scores[choice.top_k - 1].score;
    std::erase_if(scores, [&](const ScoredToken& one) { return one.score < least; });
  }
  double total = 0, before = 0;
  for (const ScoredToken& one : scores) total += weight(one);
  Scores kept;
  for (const ScoredToken& one : scores) {
    if (before < double{choice.top_p} * total && weight(one) >= double{choice.min_p}) kept.push_back(one);
    before += weight(one);
  }
  std::sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  total = 0;
  for (const ScoredToken& one : kept) total += weight(one);
  double reached = 0;
  for (const ScoredToken& one : kept) {
    reached += weight(one);
    if (draw * total < reached) return one.id;
  }
  return kept.back().id;
}

// Each row with a list of its own, in no order.
std::vector<std::uint32_t> choose(const std::vector<Scores>& rows, const SamplingRule& choice, const std::vector<float>& draws) {
  const auto count = static_cast<std::uint32_t>(rows.size());
  std::vector<std::uint32_t> lists;
  for (const Scores& row : rows) {
    const auto list = list_of(row);
    lists.insert(lists.end(), list.begin(), list.end());
  }
  const BestScoresRoom room{.largest = {}, .found = test::upload_u32(lists).view({count, best_list_words})};
  const Tensor tokens = test::device().tensor(DType::u32, {count}, "tokens");
  test::run(ChooseToken{.room = room, .choice = choice, .draws = test::upload(draws, {count}), .tokens = tokens});
  const auto result = test::device().read<std::uint32_t>(tokens);
  const auto after = test::device().read<std::uint32_t>(room.found);
  for (std::uint32_t row = 0; row < count; ++row) {
    EXPECT_EQ(chosen_token(std::span(after).subspan(std::size_t{row} * best_list_words, best_list_words)), result[row]);
  }
  return result;
}

Scores random_scores(std::uint32_t count, Rng& rng) {
  Scores scores;
  for (std::uint32_t i = 0; i < count; ++i) scores.push_back({(i * 7919 + 13) % 150000, 3 * rng.normal()});
  return scores;
}

TEST(ChooseToken, IsWhatTheDefinitionTakes) {
  Rng rng(3);
  for (const SamplingRule& choice : {SamplingRule{}, SamplingRule{.temperature = 0.6f, .top_k = 20, .top_p = 0.95f}, SamplingRule{.temperature = 1, .top_k = 64},
                                    SamplingRule{.temperature = 2, .top_k = 50, .min_p = 0.1f}, SamplingRule{.temperature = 1e-3f, .top_k = 64, .top_p = 0.5f},
                                    SamplingRule{.temperature = 1.5f, .top_k = 40, .top_p = 0.7f, .min_p = 0.02f}}) {
    for (const std::uint32_t count : {1u, 5u, 64u, 300u, 1024u}) {
      std::vector<Scores> rows;
      std::vector<float> draws;
      for (int row = 0; row < 12; ++row) {
        rows.push_back(random_scores(count, rng));
        draws.push_back(rng.uniform());
      }
      const auto tokens = choose(rows, choice, draws);
      for (std::size_t row = 0; row < rows.size(); ++row) {
        EXPECT_EQ(tokens[row], expected(rows[row], choice, draws[row])) << "row " << row << " of " << count << ", temperature " << choice.temperature << ", top-k " << choice.top_k;
      }
    }
  }
}

TEST(ChooseToken, OfEqualsTheLowestIdComesFirstAndAllThatEqualTheLastOfTopKStay) {
  const Scores scores{{40, 1}, {7, 2}, {30, 1}, {9, 2}, {20, 1}};
  EXPECT_EQ(choose({scores}, {}, {0.5f}), std::vector<std::uint32_t>{7});
  const SamplingRule three{.temperature = 1, .top_k = 3};
  EXPECT_EQ(choose({scores, scores}, three, {0, 0.99999f}), (std::vector<std::uint32_t>{7, 40}));
  EXPECT_EQ(choose({scores, scores}, {.temperature = 1, .top_k = 2}, {0, 0.99999f}), (std::vector<std::uint32_t>{7, 9}));
}

TEST(ChooseToken, ListsThatAreTooLongOrNotFiniteGiveOneOfTheirs) {
  Rng rng(4);
  Scores many = random_scores(best_list_room, rng), broken = random_scores(70, rng);
  const auto is_of = [](const Scores& scores, std::uint32_t id) {
    return std::any_of(scores.begin(), scores.end(), [id](const ScoredToken& one) { return one.id == id; });
  };
  broken[5].score = NAN, broken[6].score = INFINITY;
  Scores longer = many;
  longer.resize(5000);
  for (const float temperature : {0.0f, 1.0f}) {
    const auto tokens = choose({longer, broken}, {.temperature = temperature, .top_k = 20}, {0.3f, 0.3f});
    EXPECT_TRUE(is_of(many, tokens[0]));
    EXPECT_TRUE(is_of(broken, tokens[1]));
  }
}

TEST(ChooseToken, DrawsFromTheListedOnly) {
  EXPECT_THROW(choose({{{1, 1}}}, {.temperature = 1}, {0}), Error);
}

}  // namespace
}  // namespace nibble::choose_token_test
