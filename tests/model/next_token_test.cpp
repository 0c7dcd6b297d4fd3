#include "nibble/model/next_token.h"

#include "nibble/base/error.h"
#include "tests/model/generator_texts.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <array>

namespace nibble::next_token_test {
namespace {

using Tokens = std::vector<std::uint32_t>;

ModelState load_tiny() {
  return ModelState::load(test::device(), test::source_path("models/tiny-qwen3"), {.path = ProductPath::f32, .adapter = "", .trainable = false});
}

const std::array<SamplingOptions, 6> ways{{{}, {.repetition_penalty = 1.3f}, {.temperature = 0.9f, .top_k = 20, .top_p = 0.95f, .seed = 4},
                                           {.temperature = 1.2f, .top_k = 40, .min_p = 0.02f, .repetition_penalty = 1.2f, .seed = 5},
                                           {.temperature = 1, .seed = 6}, {.temperature = 1, .top_k = 2000, .seed = 7}}};

// With those that go ahead: of 12 tokens the first comes from the prompt, and before the second nothing is known.
TEST(NextToken, IsWhatTheSamplerTakesFromAllLogits) {
  const ModelState state = load_tiny();
  for (const std::uint32_t workgroups : {0u, 2u}) {
    Generator by_best(state, {.capacity = 64, .piece = 8, .step_workgroups = workgroups}), by_all(state, {.capacity = 64, .piece = 8, .step_workgroups = workgroups});
    Generator ahead(state, {.capacity = 64, .piece = 8, .step_workgroups = workgroups, .goes_ahead = true});
    for (const SamplingOptions& options : ways) {
      TokenSampler few(options), all(options), foreseen(options);
      const bool can_go = foreseen.foreseen(ahead.best_known()).has_value();
      const std::uint64_t computed = ahead.computed(), taken = ahead.computed_ahead();
      Tokens text{static_cast<std::uint32_t>(&options - ways.data()), 17, 3000, 42, 9};
      for (int i = 0; i < 12; ++i) {
        const std::uint32_t token = next_token(by_best, few, text);
        ASSERT_EQ(token, all.next(by_all.logits(text), text)) << "step " << i << " of temperature " << options.temperature << ", top-k " << options.top_k;
        ASSERT_EQ(token, next_token(ahead, foreseen, text)) << "step " << i << " of temperature " << options.temperature << ", top-k " << options.top_k;
        text.push_back(token);
      }
      EXPECT_EQ(ahead.computed_ahead() - taken, can_go ? 10 : 0) << "temperature " << options.temperature << ", top-k " << options.top_k;
      EXPECT_EQ(ahead.computed() - computed, 5 + 11);
    }
  }
}

// What the GPU went on with is not what comes: other tokens, other texts, no adapter.
TEST(NextToken, WhatIsNotForeseenIsComputedAsEver) {
  const ModelState state = generator_test::load_tiny(ProductPath::f32);
  Generator ahead(state, {.capacity = 64, .piece = 8, .sequences = 2, .goes_ahead = true}), other(state, {.capacity = 64, .piece = 8, .goes_ahead = false});
  TokenSampler greedy({});
  Tokens text{5, 17, 3000};
  const auto expect_next = [&](const char* when) {
    const std::uint32_t token = next_token(ahead, greedy, text);
    EXPECT_EQ(token, next_token(other, greedy, text)) << when;
    EXPECT_LT(test::relative_error(ahead.read_logits(0), other.read_logits(0)), 1e-6) << when;
    return token;
  };
  for (int i = 0; i < 9; ++i) {
    const std::uint32_t token = next_token(ahead, greedy, text);
    EXPECT_EQ(token, next_token(other, greedy, text)) << i;
    text.push_back(i % 3 == 2 ? (token + 1) % 4096 : token);
  }
  EXPECT_EQ(ahead.computed_ahead(), 5u);
  EXPECT_EQ(ahead.computed(), other.computed());
  expect_next("after another token");
  text = {8, 9};
  next_token(ahead, greedy, text), next_token(other, greedy, text), text.push_back(7);
  expect_next("of a new text");
  next_token(ahead, greedy, text);
  ahead.use_adapter(false), other.use_adapter(false);
  EXPECT_THROW(ahead.read_logits(0), Error);
  next_token(ahead, greedy, text), next_token(other, greedy, text), text.push_back(11);
  expect_next("without the adapter");
  Tokens second{3, 4, 5};
  const std::array<Generator::Text, 2> both{{{0, text}, {1, second}}};
  std::array<TokenSampler*, 2> each{&greedy, &greedy};
  const auto tokens = next_tokens(ahead, each, both);
  EXPECT_EQ(tokens[0], next_token(other, greedy, text));
  EXPECT_EQ(tokens[1], next_token(other, greedy, second));
}

TEST(NextToken, GoesAheadUpToTheCapacity) {
  const ModelState state = load_tiny();
  Generator ahead(state, {.capacity = 8, .goes_ahead = true}), other(state, {.capacity = 8, .goes_ahead = false});
  TokenSampler greedy({});
  for (std::uint32_t round = 0; round < 2; ++round) {
    Tokens text{5 + round, 17, 3000};
    while (text.size() <= 8) {
      const std::uint32_t token = next_token(ahead, greedy, text);
      EXPECT_EQ(token, next_token(other, greedy, text));
      text.push_back(token);
    }
    EXPECT_EQ(ahead.computed_ahead(), 4u * (round + 1));
    EXPECT_THROW(next_token(ahead, greedy, text), DataError);
  }
}

// Both the step that was asked for and the one ahead are worthless where workgroups wait in vain.
TEST(NextToken, AStepAheadIsGivenUpWithTheOneBeforeIt) {
  const ModelState state = generator_test::load_tiny(ProductPath::f32);
  Generator ahead(state, {.capacity = 64, .step_workgroups = 64, .goes_ahead = true}), other(state, {.capacity = 64, .step_workgroups = 0, .goes_ahead = false});
  TokenSampler greedy({});
  Tokens text{5, 17, 3000};
  for (int i = 0; i < 6; ++i) {
    const std::uint32_t token = next_token(ahead, greedy, text);
    ASSERT_EQ(token, next_token(other, greedy, text)) << i;
    text.push_back(token);
  }
  EXPECT_GT(ahead.computed_ahead(), 0u);
}

// Their list takes more bytes than all logits.
TEST(NextToken, OfAVocabularyOfAFewTokens) {
  ModelConfig config = load_tiny().config();
  config.vocab_size = 40;
  const ModelState state = ModelState::made_up(test::device(), config, {.path = ProductPath::f32, .trainable = false});
  Generator by_best(state, {.capacity = 64, .piece = 8}), by_all(state, {.capacity = 64, .piece = 8});
  TokenSampler few({}), all({});
  Tokens text{5, 17, 30};
  for (int i = 0; i < 6; ++i) {
    const std::uint32_t token = next_token(by_best, few, text);
    ASSERT_EQ(token, all.next(by_all.logits(text), text)) << i;
    text.push_back(token);
  }
}

TEST(NextToken, OfSeveralTextsIsThatOfEach) {
  const ModelState state = load_tiny();
  Generator together(state, {.capacity = 64, .piece = 8, .sequences = 3}), alone(state, {.capacity = 64, .piece = 8});
  std::array<Tokens, 3> texts{{{5, 17}, {3000}, {42, 9, 1, 7, 8, 8, 100, 200, 300, 400, 11}}};
  std::vector<TokenSampler> samplers, own;
  for (const std::size_t way : {0, 2, 3}) samplers.emplace_back(ways[way]), own.emplace_back(ways[way]);
  for (int i = 0; i < 10; ++i) {
    std::vector<Generator::Text> asked;
    std::vector<TokenSampler*> ask;
    for (std::uint32_t place = 0; place < 3; ++place) {
      if (place == 1 && i < 3) continue;  // comes later
      asked.push_back({place, texts[place]});
      ask.push_back(&samplers[place]);
    }
    const std::vector<std::uint32_t> tokens = next_tokens(together, ask, asked);
    ASSERT_EQ(tokens.size(), asked.size());
    for (std::size_t n = 0; n < asked.size(); ++n) {
      const std::uint32_t place = asked[n].sequence;
      ASSERT_EQ(tokens[n], own[place].next(alone.logits(texts[place]), texts[place])) << "step " << i << " of text " << place;
    }
    for (std::size_t n = 0; n < asked.size(); ++n) texts[asked[n].sequence].push_back(tokens[n]);
  }
}

TEST(NextToken, AllLogitsOfTheLastStepCanBeReadAndNoOthers) {
  const ModelState state = load_tiny();
  Generator generator(state, {.capacity = 64, .piece = 8}), other(state, {.capacity = 64, .piece = 8});
  const Tokens text{5, 17, 3000, 42};
  const Generator::Text asked{0, std::span(text).first(3)}, more{0, text};
  generator.next({&asked, 1});
  const auto next = generator.next({&more, 1});
  ASSERT_TRUE(next[0].logits.empty());
  EXPECT_GE(next[0].best.tokens.size(), generator.best_known());
  const auto expected = other.logits(text);
  EXPECT_LT(test::relative_error(generator.read_logits(0), expected), 1e-6);
  for (const ScoredToken& token : next[0].best.tokens) EXPECT_NEAR(token.score, expected[token.id], 1e-4);
  generator.logits(text);
  EXPECT_THROW(generator.read_logits(0), Error);
}

}  // namespace
}  // namespace nibble::next_token_test
