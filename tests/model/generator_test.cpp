#include "nibble/model/generator.h"

#include "nibble/base/error.h"
#include "nibble/model/generator_bench.h"
#include "tests/model/generator_texts.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <thread>

namespace nibble::generator_test {
namespace {

TEST(Generator, PromptAndStepsGiveTheTrainingForwardsLogits) {
  for (const ProductPath path : test::product_paths()) {
    const ModelState state = load_tiny(path);
    for (const bool with_adapter : {true, false}) {
      const Tokens tokens = golden_row(0);
      ASSERT_GT(tokens.size(), 30u);
      const auto expected = training_logits(state, tokens, with_adapter);
      Generator generator(state, {.capacity = 128});
      generator.use_adapter(with_adapter);
      for (std::size_t count = 20; count <= tokens.size(); ++count) {
        const auto logits = generator.logits(first(tokens, count));
        EXPECT_LT(test::relative_error(logits, expected[count - 1]), allowed_error(path))
            << test::name_of(path) << ", " << count << " tokens" << (with_adapter ? "" : " without adapter");
      }
      EXPECT_EQ(generator.computed(), tokens.size());
    }
  }
}

// Where so many run at one time none waits in vain; where they do not the result is right all the same.
void expect_one_dispatch(const Generator& generator, std::uint32_t workgroups) {
  const bool all_run = resident_workgroups(test::device(), 64, 16384) >= workgroups;
  EXPECT_TRUE(generator.steps_in_one_dispatch() || !all_run) << workgroups << " workgroups";
}

// One workgroup never waits for another. Of two each waits for the other's share of every product.
TEST(Generator, TokensInOneDispatchGiveTheTrainingForwardsLogits) {
  const ModelState state = load_tiny(ProductPath::f32);
  const Tokens tokens = golden_row(0);
  for (const bool with_adapter : {true, false}) {
    const auto expected = training_logits(state, tokens, with_adapter);
    for (const std::uint32_t workgroups : {1u, 2u}) {
      Generator generator(state, {.capacity = 128, .step_workgroups = workgroups});
      ASSERT_TRUE(generator.steps_in_one_dispatch());
      generator.use_adapter(with_adapter);
      for (std::size_t count = 20; count <= (workgroups == 1 ? tokens.size() : 22); ++count) {
        EXPECT_LT(test::relative_error(generator.logits(first(tokens, count)), expected[count - 1]), allowed_error(ProductPath::f32))
            << count << " tokens, " << workgroups << " workgroups" << (with_adapter ? "" : " without adapter");
      }
      expect_one_dispatch(generator, workgroups);
    }
  }
}

// More workgroups than threads: those that run wait for those that do not.
TEST(Generator, WorkgroupsThatWaitInVainAreGivenUp) {
  const ModelState state = load_tiny(ProductPath::f32);
  const Tokens tokens = golden_row(0);
  const auto expected = training_logits(state, tokens);
  Generator generator(state, {.capacity = 128, .step_workgroups = 64});
  ASSERT_TRUE(generator.steps_in_one_dispatch());
  for (std::size_t count = 20; count <= 23; ++count) {
    EXPECT_LT(test::relative_error(generator.logits(first(tokens, count)), expected[count - 1]), allowed_error(ProductPath::f32)) << count;
    EXPECT_EQ(generator.steps_in_one_dispatch(), count == 20 || test::device().info().type != gpu::AdapterType::software);
    EXPECT_EQ(generator.seen(), count);
    EXPECT_EQ(generator.computed(), count);
  }
}

TEST(Generator, APromptInPiecesIsAsOneInWhole) {
  for (const ProductPath path : test::product_paths()) {
    const ModelState state = load_tiny(path);
    Tokens tokens;
    for (std::size_t row = 0; row < 2; ++row) {
      const Tokens more = golden_row(row);
      tokens.insert(tokens.end(), more.begin(), more.end());
    }
    const auto expected = training_logits(state, tokens).back();
    // Keys in f16 are for the matrix path alone.
    for (const DType keys : {DType::f32, DType::f16}) {
      for (const std::uint32_t piece : {7u, 33u, 512u}) {
        Generator generator(state, {.capacity = static_cast<std::uint32_t>(tokens.size()), .piece = piece, .key_dtype = keys});
        EXPECT_EQ(generator.key_dtype(), path == ProductPath::matrix ? keys : DType::f32);
        EXPECT_LT(test::relative_error(generator.logits(tokens), expected), allowed_error(path))
            << test::name_of(path) << ", pieces of " << piece << ", keys in " << name_of(keys);
      }
    }
  }
}

// Beyond 512 tokens even a processor cuts the keys of a few queries into parts.
TEST(Generator, StepsAfterALongPromptGiveTheTrainingForwardsLogits) {
  const ModelState state = load_tiny(ProductPath::f32);
  const Tokens row = golden_row(0);
  Tokens tokens;
  while (tokens.size() < 560) tokens.insert(tokens.end(), row.begin(), row.end());
  const auto expected = training_logits(state, tokens);
  for (const std::uint32_t workgroups : {0u, 1u}) {
    Generator generator(state, {.capacity = static_cast<std::uint32_t>(tokens.size()), .step_workgroups = workgroups});
    for (const std::size_t count : {500, 508, 512, 513, 514, 520, 521, 540, 541}) {
      EXPECT_LT(test::relative_error(generator.logits(first(tokens, count)), expected[count - 1]), allowed_error(ProductPath::f32))
          << count << " tokens, " << workgroups;
    }
    EXPECT_EQ(generator.steps_in_one_dispatch(), workgroups == 1);
  }
}

TEST(Generator, KeepsTheCommonBeginningAlone) {
  const ModelState state = load_tiny(ProductPath::f32);
  Generator generator(state, {.capacity = 128});
  Tokens tokens = golden_row(1);
  const auto count = static_cast<std::uint32_t>(tokens.size());
  ASSERT_GT(count, 20u);
  generator.logits(tokens);
  EXPECT_EQ(generator.computed(), count);
  generator.logits(tokens);
  EXPECT_EQ(generator.computed(), count + 1) << "the last token of a repeated text";

  tokens[12] ^= 1;
  const auto changed = generator.logits(first(tokens, 20));
  EXPECT_EQ(generator.computed(), count + 1 + 8);
  EXPECT_EQ(generator.seen(), 20u);
  const auto expected = training_logits(state, {tokens.begin(), tokens.begin() + 20});
  EXPECT_LT(test::relative_error(changed, expected.back()), allowed_error(ProductPath::f32));
}

// After a step the next one is recorded already; what is asked for instead is a step at another place.
TEST(Generator, AStepCanGoBack) {
  const ModelState state = load_tiny(ProductPath::f32);
  Generator generator(state, {.capacity = 128});
  Tokens tokens = golden_row(1);
  for (std::uint32_t count = 18; count <= 21; ++count) generator.logits(first(tokens, count));
  const std::uint64_t computed = generator.computed();
  tokens[14] ^= 1;
  const auto back = generator.logits(first(tokens, 15));
  EXPECT_EQ(generator.computed(), computed + 1);
  const auto expected = training_logits(state, {tokens.begin(), tokens.begin() + 15});
  EXPECT_LT(test::relative_error(back, expected.back()), allowed_error(ProductPath::f32));
}

TEST(Generator, TheAdapterCanBeLeftOutAndTakenBack) {
  const ModelState state = load_tiny(ProductPath::f32);
  const Tokens tokens = golden_row(2);
  Generator generator(state, {.capacity = 128});
  const auto logits = [&] {
    const auto values = generator.logits(tokens);
    return std::vector<float>(values.begin(), values.end());
  };
  const auto with = logits();
  generator.use_adapter(true);
  EXPECT_EQ(generator.seen(), tokens.size());
  generator.use_adapter(false);
  EXPECT_EQ(generator.seen(), 0u);
  const auto without = logits();
  EXPECT_LT(test::relative_error(without, training_logits(state, tokens, false).back()), 1e-5);
  EXPECT_GT(test::relative_error(without, with), 1e-2);
  generator.use_adapter(true);
  EXPECT_EQ(logits(), with);
}

TEST(Generator, FillsItsCapacityAndNoMore) {
  const ModelState state = load_tiny(ProductPath::f32, false);
  const Tokens tokens = golden_row(0);
  Generator generator(state, {.capacity = 17});
  const auto expected = training_logits(state, {tokens.begin(), tokens.begin() + 17});
  for (std::size_t count = 15; count <= 17; ++count) {
    EXPECT_LT(test::relative_error(generator.logits(first(tokens, count)), expected[count - 1]), 1e-5);
  }
  test::expect_error<DataError>([&] { generator.logits(first(tokens, 18)); }, "18 tokens", "1 to 17");
  test::expect_error<DataError>([&] { generator.logits({}); }, "0 tokens");
  test::expect_error<DataError>([&] { generator.logits(Tokens{1, 4096}); }, "Token 4096", "4095");
  EXPECT_EQ(Generator(state, {.capacity = 1u << 30}).capacity(), 1024u);
}

// Rope that is stretched, biases, a window of 16 keys, which the text outgrows, a layer that does not rotate, and experts. Of two of them
// a layer's weights lie so that a token can take one dispatch.
TEST(Generator, OtherFamiliesGiveTheTrainingForwardsLogits) {
  for (const std::string family : {"llama", "mistral", "qwen2", "smollm3", "qwen3-moe"}) {
    const std::string folder = test::source_path("tests/golden/" + family);
    const ModelState state = ModelState::load(test::device(), folder + "/model", {.path = ProductPath::f32, .adapter = folder + "/adapter_nonzero", .trainable = false});
    Tokens tokens = golden_row(0);
    for (std::uint32_t& token : tokens) token %= state.config().vocab_size;
    const auto expected = training_logits(state, tokens);
    Generator generator(state, {.capacity = 128, .sequences = 2, .step_workgroups = 0}), one(state, {.capacity = 128, .step_workgroups = 1});
    for (std::size_t count = 20; count <= 24; ++count) {
      const std::array texts{Generator::Text{0, first(tokens, count)}, Generator::Text{1, first(tokens, count - 17)}};
      const auto logits = generator.all_logits(texts);
      EXPECT_LT(test::relative_error(logits[0], expected[count - 1]), 1e-5) << family << " " << count;
      EXPECT_LT(test::relative_error(logits[1], expected[count - 18]), 1e-5) << family << " " << count;
      EXPECT_LT(test::relative_error(one.logits(first(tokens, count)), expected[count - 1]), 1e-5) << family << " " << count;
    }
    EXPECT_EQ(one.steps_in_one_dispatch(), family == "mistral" || family == "qwen2") << family;
  }
}

TEST(Generator, ATokenOfALayerWithoutRotationInOneDispatchStandsAtZero) {
  ModelConfig config = load_tiny(ProductPath::f32, false).config();
  config.nope = {false, true, false, true};
  const ModelState state = ModelState::made_up(test::device(), config, {.path = ProductPath::f32, .trainable = false});
  const Tokens tokens = golden_row(0);
  const auto expected = training_logits(state, tokens);
  Generator generator(state, {.capacity = 128, .step_workgroups = 1});
  for (std::size_t count = 20; count <= 24; ++count) {
    EXPECT_LT(test::relative_error(generator.logits(first(tokens, count)), expected[count - 1]), 1e-5) << count;
  }
  EXPECT_TRUE(generator.steps_in_one_dispatch());
}

// More inputs than a workgroup's subgroups take at once, so that products sweep over them.
TEST(Generator, ATokenInOneDispatchSweepsOverWideInputs) {
  ModelConfig config = load_tiny(ProductPath::f32, false).config();
  config.intermediate_size = 1152;
  for (const std::uint32_t rank : {0u, 3u}) {
    StateOptions options{.path = ProductPath::f32, .trainable = false};
    if (rank > 0) options.lora = LoraConfig{.rank = rank, .lora_alpha = 2.0 * rank, .target_modules = usual_targets(config)};
    ModelState state = ModelState::made_up(test::device(), config, options);
    if (rank > 0) make_up_adapters(state);
    const Tokens tokens = golden_row(0);
    const auto expected = training_logits(state, tokens);
    Generator generator(state, {.capacity = 128, .step_workgroups = 1});
    for (std::size_t count = 20; count <= 24; ++count) {
      EXPECT_LT(test::relative_error(generator.logits(first(tokens, count)), expected[count - 1]), 1e-5) << count << ", rank " << rank;
    }
    EXPECT_TRUE(generator.steps_in_one_dispatch());
  }
}

// Of few rows, whose elements of B lanes share out: a rank with sums over lanes, and one with hidden values in pieces, from two workgroups.
TEST(Generator, AdaptersOfATokenInOneDispatchMeetFewRowsByLanes) {
  ModelConfig config = load_tiny(ProductPath::f32, false).config();
  config.hidden_size = 128, config.intermediate_size = 64, config.num_heads = 2, config.num_kv_heads = 1, config.head_dim = 32;
  const Tokens tokens = golden_row(0);
  for (const auto& [rank, workgroups] : {std::pair{4u, 1u}, std::pair{1u, 2u}}) {
    StateOptions options{.path = ProductPath::f32, .trainable = false};
    options.lora = LoraConfig{.rank = rank, .lora_alpha = 2.0 * rank, .target_modules = usual_targets(config)};
    ModelState state = ModelState::made_up(test::device(), config, options);
    make_up_adapters(state);
    const auto expected = training_logits(state, tokens);
    Generator generator(state, {.capacity = 128, .step_workgroups = workgroups});
    ASSERT_TRUE(generator.steps_in_one_dispatch());
    for (std::size_t count = 20; count <= 22; ++count) {
      EXPECT_LT(test::relative_error(generator.logits(first(tokens, count)), expected[count - 1]), 1e-5) << count << ", rank " << rank;
    }
    expect_one_dispatch(generator, workgroups);
  }
}

TEST(Generator, CountsTheWorkgroupsThatRunAtOneTime) {
  const std::uint32_t resident = resident_workgroups(test::device(), 64, 16384);
  EXPECT_GE(resident, 1u);
  EXPECT_LE(resident, test::device().info().type == gpu::AdapterType::software ? std::thread::hardware_concurrency() + 1 : 1024u);
}

// A step that is prepared is one with the adapter.
TEST(Generator, AStepPreparedWithTheAdapterIsNotTakenWithout) {
  const ModelState state = load_tiny(ProductPath::f32);
  const Tokens tokens = golden_row(0);
  for (const std::uint32_t workgroups : {0u, 1u}) {
    Generator generator(state, {.capacity = 128, .piece = 16, .step_workgroups = workgroups});
    for (std::size_t count = 15; count <= 16; ++count) generator.logits(first(tokens, count));
    generator.use_adapter(false);
    EXPECT_LT(test::relative_error(generator.logits(first(tokens, 17)), training_logits(state, tokens, false)[16]), 1e-5) << workgroups;
  }
}

TEST(Generator, CountsItsMemory) {
  auto& device = test::device();
  for (const ProductPath path : test::product_paths()) {
    const ModelState state = load_tiny(path);
    const GeneratorOptions options{.path = path, .capacity = 300, .piece = 64, .sequences = 5, .step_workgroups = 1};
    const std::uint64_t before = device.memory().current;
    const Generator generator(state, options);
    const auto made = static_cast<double>(device.memory().current - before);
    // Buffers are rounded up, and a few hold no more than a word.
    EXPECT_NEAR(made, static_cast<double>(Generator::bytes(device, state.config(), options, state.lora_config().rank)), 0.01 * made);
  }
}

}  // namespace
}  // namespace nibble::generator_test
