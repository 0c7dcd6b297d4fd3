#include "nibble/model/model_state.h"

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/io/json.h"
#include "nibble/model/generator.h"
#include "nibble/model/model.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/shapes.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <bit>
#include <cmath>
#include <numeric>

namespace nibble::model_state_test {
namespace {

using test::tiny;
const std::filesystem::path nonzero = test::source_path("tests/golden/tiny/adapter_nonzero");

ModelState load_tiny(StateOptions options = {.lora = LoraConfig{.rank = 4, .lora_alpha = 8}}) {
  options.path = ProductPath::f32;
  return ModelState::load(test::device(), tiny, options);
}

std::vector<std::uint32_t> some_tokens(std::uint32_t count) {
  std::vector<std::uint32_t> tokens(count);
  Rng rng(3);
  for (auto& token : tokens) token = rng.below(4096);
  return tokens;
}

// Logits after each token of one sequence.
std::vector<float> logits_of(const ModelState& state, const std::vector<std::uint32_t>& tokens) {
  const auto count = static_cast<std::uint32_t>(tokens.size());
  Model model(state, {.max_tokens = count, .max_labels = count, .trainable = false});
  std::vector<std::uint32_t> position(count);
  std::iota(position.begin(), position.end(), 0u);
  const std::vector<std::uint32_t> begin(count), end(count, count);
  gpu::Recorder recorder(test::device());
  const DeviceStream stream = model.upload(recorder, {.tokens = tokens, .position = position, .segment_begin = begin,
                                                      .segment_end = end, .label_rows = {}, .labels = {}});
  const Tensor logits = model.logits(recorder, model.forward(recorder, stream), test::upload_u32(position), count);
  recorder.submit();
  return test::download(logits);
}

// The figures that the documented type promises.
TEST(ModelStateShapes, Qwen3_4BHasTheStatedCountsAndBytes) {
  const ModelConfig config = shape_by_name("qwen3-4b");
  EXPECT_EQ(trainable_params(config, {.rank = 16}), 33'030'144u);
  EXPECT_EQ(trainable_params(config, {.rank = 32}), 66'060'288u);
  EXPECT_EQ(trainable_params(config, {.rank = 16, .saves_head = true}), 33'030'144u + 388'956'160u);
  const auto layers = frozen_shapes(config);
  ASSERT_EQ(layers.size(), 36u);
  std::uint64_t bytes = 0;
  for (const Nf4Layer& layer : layers) {
    EXPECT_EQ(layer.memory_bytes(), 56'770'560u);  // 54.1 MiB
    EXPECT_LT(layer.memory_bytes(), 60'000'000u);
    bytes += layer.memory_bytes();
  }
  EXPECT_EQ(bytes, 36u * 56'770'560u);
  EXPECT_EQ(bytes >> 20, 1949u);
}

TEST(ModelState, ShapesAndSizesAreTheModels) {
  const ModelState state = load_tiny();
  const ModelConfig& c = state.config();
  EXPECT_EQ(state.hidden_size(), c.hidden_size);
  EXPECT_EQ(state.num_layers(), c.num_layers);
  EXPECT_EQ(state.vocab_size(), c.vocab_size);
  EXPECT_EQ(state.num_heads(), c.num_heads);
  EXPECT_EQ(state.num_kv_heads(), c.num_kv_heads);
  EXPECT_EQ(state.head_dim(), c.head_dim);
  EXPECT_EQ(state.intermediate_size(), c.intermediate_size);
  EXPECT_EQ(state.lm_head().size(), std::size_t{c.vocab_size} * c.hidden_size);
  EXPECT_EQ(state.trainable_params(), trainable_params(c, state.lora_config()));
  ASSERT_EQ(state.lora().size(), c.num_layers);
  std::uint64_t bytes = 0;
  for (std::uint32_t i = 0; i < c.num_layers; ++i) {
    for (const Projection p : all_projections) {
      const auto [out, in] = projection_dims(c, p);
      const Nf4Projection& frozen = state.layers()[i].at(p);
      EXPECT_EQ(frozen.out_dim, out);
      EXPECT_EQ(frozen.in_dim, in);
      EXPECT_EQ(frozen.packed.size() + 4 * frozen.absmax.size(), frozen.memory_bytes());
      bytes += frozen.memory_bytes();
      const LoraProjection& lora = state.lora()[i].at(p);
      EXPECT_EQ(lora.rank, 4u);
      EXPECT_EQ(lora.in_dim, in);
      EXPECT_EQ(lora.out_dim, out);
      EXPECT_EQ(lora.a.size(), 4u * in);
      EXPECT_EQ(lora.b.size(), 4u * out);
      EXPECT_EQ(lora.m_a, std::vector<float>(4 * in));
      EXPECT_EQ(lora.v_b, std::vector<float>(4 * out));
    }
  }
  EXPECT_EQ(state.memory_bytes(), bytes);
}

// The mirror holds what NF4 makes of the checkpoint's values, and the head is the file's.
TEST(ModelState, LayersAndHeadAreTheFiles) {
  const ModelState state = load_tiny();
  const Checkpoint files(tiny);
  const auto weight = files.read_as_f32(projection_tensor_name(2, Projection::up));
  std::vector<std::uint8_t> packed(nf4_packed_bytes(weight.size()));
  std::vector<float> absmax(nf4_blocks(weight.size()));
  nf4_quantize(DType::f32, std::as_bytes(std::span(weight)), packed, absmax);
  EXPECT_EQ(state.layers()[2].up.packed, packed);
  EXPECT_EQ(state.layers()[2].up.absmax, absmax);
  EXPECT_EQ(state.lm_head(), files.read_as_f32(embedding_tensor_name));
}

TEST(ModelState, TheSideThatWroteLastIsValid) {
  ModelState state = load_tiny();
  gpu::Device& device = test::device();
  const Tensor b = state.lora_mirror().on_device()->slot(1, Projection::v).b;
  // The host writes, the device reads.
  state.edit_lora()[1].v.b[5] = 2.5f;
  EXPECT_EQ(device.read<float>(b)[5], 0.0f) << "nothing moves before it is asked for";
  EXPECT_EQ(state.lora_mirror().on_device()->slot(1, Projection::v).b.buffer(), b.buffer()) << "the address stays";
  EXPECT_EQ(device.read<float>(b)[5], 2.5f);
  // The device writes, the host reads.
  state.lora_mirror().train();
  const std::vector<float> values(b.size(), -1.5f);
  device.write(b, std::as_bytes(std::span(values)));
  EXPECT_EQ(state.lora()[1].v.b, values);
  // Reading on both sides moves nothing: a value put behind the mirror's back stays unseen.
  const std::vector<float> unseen(b.size(), 9.0f);
  device.write(b, std::as_bytes(std::span(unseen)));
  EXPECT_EQ(state.lora()[1].v.b, values);
  EXPECT_EQ(state.lora_mirror().on_device()->slot(1, Projection::v).b.buffer(), b.buffer());
  EXPECT_EQ(device.read<float>(b)[0], 9.0f);
}

TEST(ModelState, AMatrixOfAnotherSizeIsRefusedByName) {
  ModelState state = load_tiny();
  state.edit_lora()[3].down.m_b.pop_back();
  test::expect_error<UsageError>([&] { state.lora_mirror().on_device(); }, "m_b", "model.layers.3.mlp.down_proj");
}

TEST(ModelState, ModelsAndGeneratorsSeeWhatTheHostWrites) {
  ModelState state = load_tiny();
  const auto tokens = some_tokens(12);
  Generator generator(state, {.capacity = 32});
  const auto next = [&] {
    const auto logits = generator.logits(tokens);
    return std::vector<float>(logits.begin(), logits.end());
  };
  const auto before = next();
  for (float& value : state.edit_lora()[0].o.b) value = 0.01f;
  const auto after = next();
  EXPECT_GT(test::relative_error(after, before), 1e-3);
  const auto all = logits_of(state, tokens);
  EXPECT_LT(test::relative_error(after, std::span(all).last(state.vocab_size())), 1e-5);
}

TEST(ModelState, WithBZeroTheOutputIsTheBases) {
  const auto tokens = some_tokens(20);
  EXPECT_EQ(logits_of(load_tiny(), tokens), logits_of(load_tiny({.lora = {}}), tokens));
}

// Also bit for bit: what a position sees does not depend on what follows it.
TEST(ModelState, ATokenChangesNoEarlierLogits) {
  const ModelState state = load_tiny({.adapter = nonzero});
  auto tokens = some_tokens(40);
  const auto before = logits_of(state, tokens);
  const std::uint32_t changed = 23;
  tokens[changed] ^= 1;
  const auto after = logits_of(state, tokens);
  const std::size_t same = std::size_t{changed} * state.vocab_size();
  EXPECT_EQ(std::vector<float>(after.begin(), after.begin() + static_cast<std::ptrdiff_t>(same)),
            std::vector<float>(before.begin(), before.begin() + static_cast<std::ptrdiff_t>(same)));
  for (std::size_t row = changed; row < tokens.size(); ++row) {
    const auto at = [&](const std::vector<float>& all) { return std::span(all).subspan(row * state.vocab_size(), state.vocab_size()); };
    EXPECT_GT(test::relative_error(at(after), at(before)), 1e-6) << row;
  }
}

TEST(WeightCache, HoldsTheDequantisedWeightsTransposed) {
  ModelState state = load_tiny({.adapter = nonzero});
  EXPECT_FALSE(state.ffn_cache(0).has_value());
  EXPECT_FALSE(state.attn_cache(0).has_value());
  const auto tokens = some_tokens(24);
  const auto before = logits_of(state, tokens);
  state.populate_weight_cache();
  const std::uint64_t memory = test::device().memory().current;
  state.populate_weight_cache();
  EXPECT_EQ(test::device().memory().current, memory) << "a second call does nothing";
  for (const std::uint32_t layer : {0u, 3u}) {
    const auto ffn = state.ffn_cache(layer).value();
    const auto attn = state.attn_cache(layer).value();
    const std::pair<Projection, Tensor> caches[] = {{Projection::gate, ffn.gate}, {Projection::up, ffn.up}, {Projection::down, ffn.down},
                                                    {Projection::q, attn.q}, {Projection::k, attn.k}, {Projection::v, attn.v}, {Projection::o, attn.o}};
    for (const auto& [p, cache] : caches) {
      const Nf4Projection& frozen = state.layers()[layer].at(p);
      std::vector<float> w(frozen.count());
      nf4_dequantize(frozen.packed, frozen.absmax, w);
      ASSERT_EQ(cache.dim(0), frozen.in_dim);
      ASSERT_EQ(cache.dim(1), frozen.out_dim);
      const auto values = test::download(cache);
      for (std::size_t i = 0; i < w.size(); ++i) {
        ASSERT_EQ(values[i % frozen.in_dim * frozen.out_dim + i / frozen.in_dim], w[i]) << nibble::name_of(p) << " " << i;
      }
    }
  }
  // Products read the caches and differ by the order of sums alone: 2^-24 sqrt(K) in each of 28 products.
  EXPECT_LT(test::relative_error(logits_of(state, tokens), before), 1e-5);
}

TEST(WeightCache, RefusesWithTheBytesThatItNeeds) {
  ModelState state = load_tiny({});
  std::uint64_t kept = 0, largest = 0;
  for (const Nf4Layer& layer : state.layers()) {
    for (const Projection p : all_projections) {
      const std::uint64_t one = gpu::buffer_bytes(4 * layer.at(p).count());
      kept += one;
      largest = std::max(largest, one);
    }
  }
  const std::uint64_t memory = test::device().memory().current;
  test::expect_error<OutOfDeviceMemory>([&] { state.populate_weight_cache(kept + largest - 1); }, std::to_string(kept + largest),
                                        std::to_string(kept + largest - 1));
  EXPECT_FALSE(state.ffn_cache(0).has_value());
  EXPECT_EQ(test::device().memory().current, memory);
  state.populate_weight_cache(kept + largest);
  EXPECT_EQ(test::device().memory().current, memory + kept);
}

TEST(LoadQwen3_4B, HonoursRankAndAlpha) {
  const ModelState state = ModelState::load_qwen3_4b(test::device(), tiny, 3, 12.0);
  EXPECT_EQ(state.lora_config().rank, 3u);
  EXPECT_EQ(state.lora_config().lora_alpha, 12.0);
  EXPECT_EQ(state.lora_mirror().on_device()->slot(0, Projection::q).scaling, 4.0f);
  EXPECT_EQ(state.lora()[0].q.a.size(), 3u * state.hidden_size());
}

// A copy of the tiny model whose config.json lacks what the 4B has alike.
TEST(LoadQwen3_4B, TakesWhatIsMissingFromThe4BAndSaysSo) {
  const test::TemporaryFolder folder;
  std::filesystem::copy(tiny, folder.path(), std::filesystem::copy_options::recursive);
  Json config = read_json_file(tiny / "config.json");
  config.erase("rms_norm_eps");
  config.erase("model_type");
  folder.write("config.json", config.dump());
  std::string said;
  set_log_hook([&](LogLevel, std::string_view message) { said += message; });
  const ModelState state = ModelState::load_qwen3_4b(test::device(), folder.path(), 2, 2.0);
  set_log_hook({});
  EXPECT_NE(said.find("\"model_type\" is missing and taken to be \"qwen3\""), said.npos) << said;
  EXPECT_EQ(state.config().rms_norm_eps, 1e-6f);
  // The general load does not guess the family.
  test::expect_error<DataError>([&] { ModelState::load(test::device(), folder.path()); }, "model_type");
}

TEST(JsonCheckpointOfState, RoundTripIsBitForBit) {
  ModelState state = load_tiny();
  auto& lora = state.edit_lora();
  Rng rng(1);
  for (LoraLayer& layer : lora) {
    for (const Projection p : all_projections) {
      for (auto* numbers : {&layer.at(p).a, &layer.at(p).b, &layer.at(p).m_a, &layer.at(p).m_b, &layer.at(p).v_a, &layer.at(p).v_b}) {
        for (float& value : *numbers) {
          do value = std::bit_cast<float>(rng.next_u32());
          while (!std::isfinite(value));
        }
      }
    }
  }
  const auto saved = lora;
  const test::TemporaryFolder folder;
  const auto path = state.save_checkpoint(folder.path(), 77, 1.0 / 3);
  EXPECT_EQ(path, folder / "lora-checkpoint-step77.json");
  ModelState other = load_tiny({.lora = LoraConfig{.rank = 4, .lora_alpha = 8}, .seed = 5});
  const auto position = other.load_checkpoint(path);
  EXPECT_EQ(position.step, 77u);
  EXPECT_EQ(position.loss, 1.0 / 3);
  EXPECT_EQ(other.step, 77u);
  for (std::size_t i = 0; i < saved.size(); ++i) {
    for (const Projection p : all_projections) {
      const LoraProjection &a = saved[i].at(p), &b = other.lora()[i].at(p);
      for (const auto numbers : {&LoraProjection::a, &LoraProjection::b, &LoraProjection::m_a, &LoraProjection::m_b,
                                 &LoraProjection::v_a, &LoraProjection::v_b}) {
        ASSERT_EQ((a.*numbers).size(), (b.*numbers).size());
        EXPECT_EQ(std::memcmp((a.*numbers).data(), (b.*numbers).data(), 4 * (a.*numbers).size()), 0);
      }
    }
  }
}

TEST(JsonCheckpointOfState, AnotherAdapterIsRefusedByName) {
  const test::TemporaryFolder folder;
  const auto path = load_tiny().save_checkpoint(folder.path(), 1, 2.0);
  const auto refuses = [&](const LoraConfig& lora, const std::string& a, const std::string& b) {
    ModelState state = load_tiny({.lora = lora});
    const auto before = state.lora()[0].q.a;
    test::expect_error<DataError>([&] { state.load_checkpoint(path); }, a, b);
    EXPECT_EQ(state.lora()[0].q.a, before);
    EXPECT_EQ(state.step, 0u);
  };
  refuses({.rank = 5, .lora_alpha = 8}, "rank", "5");
  refuses({.rank = 4, .lora_alpha = 9}, "alpha is 8", "has 9");
}

TEST(JsonCheckpointOfState, ATrainedHeadLiesBesideIt) {
  const test::TemporaryFolder folder;
  for (const MomentKind moments : {MomentKind::f32, MomentKind::eight_bit}) {
    ModelState state = load_tiny();
    state.train_head({.moments = moments});
    const auto gradient = test::random_values(state.lm_head().size(), 1, 1e-2f);
    test::device().write(state.trained_head()->gradient(), std::as_bytes(std::span(gradient)));
    gpu::Recorder recorder(test::device());
    state.trained_head()->update(recorder, test::upload(std::vector<float>{1, 1}, {2}), {.learning_rate = 1e-2});
    recorder.submit();
    state.trained_head()->settle();
    const auto path = state.save_checkpoint(folder.path(), 3, 2.0);
    EXPECT_TRUE(std::filesystem::exists(folder / "lora-checkpoint-step3.lm_head.safetensors"));

    ModelState other = load_tiny();
    test::expect_error<DataError>([&] { other.load_checkpoint(path); }, "train_head");
    other.train_head({.moments = moments});
    EXPECT_NE(other.lm_head(), state.lm_head());
    other.load_checkpoint(path);
    EXPECT_TRUE(other.lm_head() == state.lm_head());
    EXPECT_TRUE(other.lm_head_m() == state.lm_head_m());
    EXPECT_TRUE(other.lm_head_v() == state.lm_head_v());
    std::filesystem::remove(folder / "lora-checkpoint-step3.lm_head.safetensors");
    test::expect_error<DataError>([&] { other.load_checkpoint(path); }, "lora-checkpoint-step3.lm_head.safetensors", "missing");
  }
}

TEST(JsonCheckpointOfState, AValueThatIsNotFiniteIsRefused) {
  ModelState state = load_tiny();
  state.edit_lora()[2].gate.v_a[3] = std::numeric_limits<float>::quiet_NaN();
  const test::TemporaryFolder folder;
  test::expect_error<Error>([&] { state.save_checkpoint(folder.path(), 1, 2.0); }, "gate", "v_a");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace nibble::model_state_test
