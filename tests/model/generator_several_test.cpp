#include "nibble/model/generator.h"

#include "tests/model/generator_texts.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <algorithm>
#include <array>

namespace nibble::generator_test {
namespace {

// Texts side by side, begun at different times, of which one ends and another takes its place.
// By vectors, and on matrix units, whose products read NF4 themselves.
TEST(Generator, SeveralTextsGiveWhatEachGivesAlone) {
  std::vector<std::pair<ProductPath, std::uint32_t>> ways;
  for (const ProductPath path : test::product_paths()) ways.emplace_back(path, 0);
  if (ways.back().first == ProductPath::matrix) ways.emplace_back(ProductPath::matrix, 2);
  for (const auto& [path, least_on_matrices] : ways) {
    const ModelState state = load_tiny(path);
    const std::array<Tokens, 4> texts{golden_row(0), golden_row(1), golden_row(2), golden_row(3)};
    Generator together(state, {.capacity = 128, .piece = 16, .sequences = 3, .least_on_matrices = least_on_matrices});
    Generator alone(state, {.capacity = 128, .piece = 16});
    EXPECT_EQ(together.sequences(), 3u);
    const auto expect_same = [&](std::span<const Generator::Text> asked) {
      const auto logits = together.all_logits(asked);
      ASSERT_EQ(logits.size(), asked.size());
      for (std::size_t i = 0; i < asked.size(); ++i) {
        EXPECT_LT(test::relative_error(logits[i], alone.logits(asked[i].tokens)), allowed_error(path)) << asked[i].sequence;
        EXPECT_EQ(together.seen(asked[i].sequence), asked[i].tokens.size());
      }
    };
    for (std::size_t n = 9; n < 14; ++n) {
      const std::array asked{Generator::Text{0, first(texts[0], n)}, Generator::Text{1, first(texts[1], n + 4)}, Generator::Text{2, first(texts[2], 3)}};
      expect_same(std::span(asked).first(n < 11 ? 2 : 3));
    }
    const std::array changed{Generator::Text{0, first(texts[3], 20)}, Generator::Text{2, first(texts[2], 4)}};
    expect_same(changed);
    together.use_adapter(false);
    alone.use_adapter(false);
    expect_same(changed);
  }
}

TEST(Generator, AdaptersThatChangeAreReadAnew) {
  for (const ProductPath path : test::product_paths()) {
    ModelState state = load_tiny(path);
    const Tokens text = golden_row(0), other = golden_row(1);
    Generator generator(state, {.capacity = 128, .sequences = 2, .least_on_matrices = 2});
    const std::array both{Generator::Text{0, first(text, 20)}, Generator::Text{1, first(other, 9)}};
    const auto expect_logits = [&](const char* when) {
      const auto logits = generator.all_logits(both);
      EXPECT_LT(test::relative_error(logits[0], training_logits(state, text)[19]), allowed_error(path)) << test::name_of(path) << ", " << when;
      EXPECT_LT(test::relative_error(logits[1], training_logits(state, other)[8]), allowed_error(path)) << test::name_of(path) << ", " << when;
      return std::vector<float>(logits[0].begin(), logits[0].end());
    };
    const std::vector<float> before = expect_logits("before");
    for (LoraLayer& layer : state.edit_lora()) {
      for (float& value : layer.down.b) value *= -3.0f;
    }
    EXPECT_GT(test::relative_error(expect_logits("after"), before), 10 * allowed_error(path));
    expect_logits("again");
  }
}

TEST(Generator, TextsThatFitAreThoseOfAPassWithinTheMemory) {
  for (const ProductPath path : test::product_paths()) {
    const ModelState state = load_tiny(path);
    const std::uint32_t rank = state.lora_config().rank;
    GeneratorOptions options{.path = path, .capacity = 500, .sequences = 100, .least_on_matrices = 2};
    const auto bytes_of = [&](std::uint32_t sequences) {
      GeneratorOptions of = options;
      of.sequences = sequences;
      return Generator::bytes(test::device(), state.config(), of, rank);
    };
    const std::uint32_t all = path == ProductPath::matrix ? 64 : 8;
    EXPECT_EQ(Generator::texts_that_fit(state, options, bytes_of(all)), all);
    EXPECT_EQ(Generator::texts_that_fit(state, options, bytes_of(all) - 1), all / 2);
    EXPECT_EQ(Generator::texts_that_fit(state, options, bytes_of(2)), 2u);
    EXPECT_EQ(Generator::texts_that_fit(state, options, 0), 1u);
    options.sequences = 3;
    EXPECT_EQ(Generator::texts_that_fit(state, options, bytes_of(3)), 3u);
  }
}

// A step of texts on matrix units decodes nothing before its products, and takes no vectors.
TEST(Generator, SeveralTextsOnMatrixUnitsReadNf4InProducts) {
  if (test::must_skip(supports(test::device().info(), ProductPath::matrix))) GTEST_SKIP() << "The adapter has no matrices.";
  gpu::Device device({.profile = true});
  const ModelState state = ModelState::load(device, test::source_path("models/tiny-qwen3"), {.path = ProductPath::matrix, .trainable = false});
  Generator generator(state, {.capacity = 64, .sequences = 2, .least_on_matrices = 2});
  const Tokens tokens = golden_row(0);
  const auto calls = [&](std::string_view kernel) {
    std::uint64_t count = 0;
    for (const auto& row : device.profile()) count += row.label.starts_with(kernel) ? row.count : 0;
    return count;
  };
  const std::array prompts{Generator::Text{0, first(tokens, 4)}, Generator::Text{1, first(tokens, 6)}};
  const std::array next{Generator::Text{0, first(tokens, 5)}, Generator::Text{1, first(tokens, 7)}};
  for (const Generator::Text& prompt : prompts) generator.all_logits({&prompt, 1});
  const auto by_vectors = [&] { return calls("nf4_vec") + calls("nf4_row"); };
  const std::uint64_t vectors = by_vectors(), products = calls("product_matrix:nt");
  EXPECT_GT(vectors, 0u);
  generator.all_logits(next);
  EXPECT_EQ(by_vectors(), vectors);
  EXPECT_EQ(calls("nf4_dequantize"), 0u);
  EXPECT_GE(calls("product_matrix:nt"), products + 4 * state.num_layers());
}

// Texts that are new fill pieces together; one that goes on, or is longer than what is left of a piece, is computed by itself.
TEST(Generator, NewTextsAreComputedTogether) {
  if (test::must_skip(supports(test::device().info(), ProductPath::matrix))) GTEST_SKIP() << "The adapter has no matrices.";
  gpu::Device device({.profile = true});
  const ModelState state = ModelState::load(device, test::source_path("models/tiny-qwen3"), {.path = ProductPath::matrix, .trainable = false});
  const std::array<Tokens, 4> texts{golden_row(0), golden_row(1), golden_row(2), golden_row(3)};
  const auto passes = [&] {
    std::uint64_t count = 0;
    for (const auto& row : device.profile()) count += row.label.starts_with("embedding") ? row.count : 0;
    return count;
  };
  Generator alone(state, {.capacity = 64});
  for (const auto& [piece, expected] : {std::pair{64u, 1u}, {40u, 2u}}) {
    Generator together(state, {.capacity = 64, .piece = piece, .sequences = 4});
    const auto expect_same = [&](std::span<const Generator::Text> asked, std::uint64_t count) {
      const std::uint64_t before = passes();
      const auto logits = together.all_logits(asked);
      EXPECT_EQ(passes() - before, count) << piece;
      for (std::size_t i = 0; i < asked.size(); ++i) {
        EXPECT_LT(test::relative_error(logits[i], alone.logits(asked[i].tokens)), allowed_error(ProductPath::matrix)) << asked[i].sequence;
        EXPECT_EQ(together.seen(asked[i].sequence), asked[i].tokens.size());
      }
    };
    const std::array asked{Generator::Text{0, first(texts[0], 19)}, Generator::Text{1, first(texts[1], 2)}, Generator::Text{2, first(texts[2], 11)},
                           Generator::Text{3, first(texts[3], 23)}};
    expect_same(asked, expected);
    const std::array next{Generator::Text{0, first(texts[3], 19)}, Generator::Text{1, first(texts[1], 3)}, Generator::Text{2, first(texts[2], 12)},
                          Generator::Text{3, first(texts[3], 24)}};
    expect_same(next, 2);
    Tokens begun(texts[0].begin(), texts[0].begin() + 20), also_begun(begun.begin(), begun.begin() + 4);
    std::copy_n(texts[1].begin(), 15, begun.begin() + 5);
    also_begun.insert(also_begun.end(), texts[2].begin(), texts[2].begin() + 11);
    const std::array first_turn{Generator::Text{0, first(texts[0], 20)}, Generator::Text{1, first(texts[0], 21)}};
    const std::array begun_alike{Generator::Text{0, begun}, Generator::Text{1, also_begun}};
    together.all_logits(first_turn);
    expect_same(begun_alike, 1);
    begun[16] ^= 1;
    const std::array one_changed{Generator::Text{0, begun}, Generator::Text{1, also_begun}};
    expect_same(one_changed, 2);
  }
}

// As where keys and values are kept in f32, but for their rounding, which is no more than that of a product; by each way to compute a token.
TEST(Generator, KeysAndValuesMayBeF16) {
  if (test::must_skip(supports(test::device().info(), ProductPath::matrix))) GTEST_SKIP() << "The adapter has no matrices.";
  const ModelState state = load_tiny(ProductPath::matrix);
  const std::array<Tokens, 2> texts{golden_row(0), golden_row(1)};
  const std::array expected{training_logits(state, texts[0]), training_logits(state, texts[1])};
  const std::uint32_t rank = state.lora_config().rank;
  for (const std::uint32_t workgroups : {0u, 1u}) {
    for (const std::uint32_t least_on_matrices : {0u, 2u}) {
      GeneratorOptions options{.path = ProductPath::matrix, .capacity = 64, .sequences = 2, .step_workgroups = workgroups, .least_on_matrices = least_on_matrices,
                               .key_dtype = DType::f16};
      Generator generator(state, options);
      for (std::size_t count = 20; count <= 28; ++count) {
        const bool both = count % 4 < 2;
        const std::array asked{Generator::Text{0, first(texts[0], count)}, Generator::Text{1, first(texts[1], count - 12)}};
        const auto logits = generator.all_logits(std::span(asked).first(both ? 2 : 1));
        for (std::size_t i = 0; i < logits.size(); ++i) {
          EXPECT_LT(test::relative_error(logits[i], expected[i][asked[i].tokens.size() - 1]), allowed_error(ProductPath::matrix)) << count << " " << i;
        }
      }
      const std::uint64_t half = Generator::bytes(test::device(), state.config(), options, rank);
      options.key_dtype = DType::f32;
      EXPECT_EQ(Generator::bytes(test::device(), state.config(), options, rank) - half,
                2ull * state.num_layers() * 2 * 2 * 64 * state.config().num_kv_heads * state.config().head_dim);
    }
  }
}

}  // namespace
}  // namespace nibble::generator_test
