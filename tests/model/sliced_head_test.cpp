#include "nibble/base/error.h"
#include "nibble/model/generator.h"
#include "nibble/model/memory_plan.h"
#include "nibble/quant/int8.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/gguf_model.h"
#include "tests/model/two_passes.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <algorithm>

// A head that lies in host memory or in codes and is read in slices, against the same one whole on the device.
namespace nibble::sliced_head_test {
namespace {

constexpr std::uint32_t tokens = 48;

std::string tied() { return test::source_path("models/tiny-qwen3"); }
std::string untied() { return test::source_path("tests/golden/llama/model"); }

struct Setting {
  std::string model = tied();
  ProductPath path = ProductPath::f32;
  StreamOptions stream = {};
  std::uint32_t slice = 0, chunk = 0;
};

ModelState state_of(const Setting& setting) {
  ModelState state = ModelState::load(test::device(), setting.model,
                                      {.path = setting.path, .lora = LoraConfig{.rank = 8, .lora_alpha = 16}, .stream = setting.stream});
  test::fill_b(state);
  return state;
}

ModelOptions model_options(const Setting& setting) {
  return {.path = setting.path, .stream = setting.stream, .max_tokens = tokens, .max_labels = tokens, .head_chunk = setting.chunk,
          .head_slice = setting.slice};
}

test::TwoSegments batch_for(const ModelConfig& config) {
  test::TwoSegments batch(tokens, 20, 4000);
  for (auto* ids : {&batch.ids, &batch.labels}) {
    for (std::uint32_t& id : *ids) id %= config.vocab_size;
  }
  return batch;
}

struct Result {
  test::TwoPasses passes;
  std::vector<float> logits;
  std::vector<std::uint32_t> correct;
};

Result result_of(const Setting& setting, const ModelState& state) {
  auto& device = test::device();
  Model model(state, model_options(setting));
  const auto batch = batch_for(state.config());
  Result result{.passes = test::two_passes(state, model, batch), .logits = {}, .correct = {}};
  gpu::Recorder recorder(device);
  const DeviceStream stream = model.upload(recorder, batch.stream());
  const Head::Loss loss = model.loss(recorder, stream);
  const Tensor logits = model.logits(recorder, model.forward(recorder, stream), stream.label_rows.rows(0, 3), 3);
  recorder.submit();
  result.correct = device.read<std::uint32_t>(loss.correct);
  result.logits = device.read<float>(logits);
  return result;
}

Result result_of(const Setting& setting) { return result_of(setting, state_of(setting)); }

void expect_close(const Result& given, const Result& expected, double tolerance) {
  EXPECT_EQ(given.correct, expected.correct);
  EXPECT_LE(test::relative_error(given.passes.losses, expected.passes.losses), tolerance);
  EXPECT_LE(test::relative_error(given.passes.evaluated, expected.passes.evaluated), tolerance);
  EXPECT_LE(test::relative_error(given.logits, expected.logits), tolerance);
  EXPECT_LE(test::relative_error(given.passes.gradients, expected.passes.gradients), 20 * tolerance);
}

// Of matrix units another slice's product may be summed in another order.
double tolerance_of(ProductPath path) { return path == ProductPath::f32 ? 1e-6 : 5e-4; }

TEST(SlicedHead, OnTheHostIsTheSame) {
  if (test::must_skip(gpu::supports(test::device().info(), gpu::HostMemory::direct))) GTEST_SKIP() << "Kernels cannot read host memory.";
  for (const ProductPath path : test::product_paths()) {
    SCOPED_TRACE(test::name_of(path));
    for (const std::string& model : {tied(), untied()}) {
      const Result whole = result_of({.model = model, .path = path});
      ASSERT_GT(*std::max_element(whole.passes.gradients.begin(), whole.passes.gradients.end()), 0.0f);
      for (const auto& [slice, memory] : {std::pair{0u, gpu::HostMemory::staged}, {512u, gpu::HostMemory::staged}, {512u, gpu::HostMemory::carried}}) {
        SCOPED_TRACE(fmt::format("{} in slices of {}, {}", model, slice, gpu::name_of(memory)));
        const StreamOptions stream{.memory = memory, .embedding = slice > 0, .head = true};
        expect_close(result_of({.model = model, .path = path, .stream = stream, .slice = slice, .chunk = slice == 0 ? 0 : 64u}), whole,
                     tolerance_of(path));
      }
    }
  }
}

// The base of the dense reference: what codes stand for, uploaded as a table of its own.
Table decoded(const MatrixSource& source, TableForm form, DType dtype) {
  std::vector<float> values;
  source.read([&](std::span<const float> piece, std::uint64_t) { values.insert(values.end(), piece.begin(), piece.end()); });
  std::vector<float> scales(values.size() / nf4_block), back(values.size());
  if (form == TableForm::nf4) {
    std::vector<std::uint8_t> codes(values.size() / 2);
    nf4_quantize(DType::f32, std::as_bytes(std::span(values)), codes, scales);
    nf4_dequantize(codes, scales, back);
  } else {
    std::vector<std::int8_t> codes(values.size());
    int8_quantize(values, codes, scales);
    int8_dequantize(codes, scales, back);
  }
  const MatrixSource all{.rows = source.rows, .columns = source.columns, .read = [&](const PieceSink& sink) { sink(back, 0); }};
  return upload_table(test::device(), all, {.dtype = dtype}, "decoded");
}

// A state whose tables are what those in codes stand for.
ModelState decoded_state(const Setting& setting, TableForm form) {
  const ModelConfig config = read_model_config(setting.model);
  const Checkpoint files = open_checkpoint(setting.model, config);
  ModelState dense = state_of(setting);
  auto& weights = const_cast<DeviceWeights&>(dense.weights());
  const DType dtype = operand_dtype(setting.path);
  weights.embedding = decoded(source_of(files.at(embedding_tensor_name)), form, dtype);
  weights.head = weights.base_head = config.tie_word_embeddings ? weights.embedding : decoded(source_of(files.at(head_tensor_name)), form, dtype);
  return dense;
}

TEST(SlicedHead, InCodesIsTheDecodedOne) {
  for (const ProductPath path : test::product_paths()) {
    for (const std::string& model : {tied(), untied()}) {
      const Result in_f16 = result_of({.model = model, .path = path});
      for (const TableForm form : {TableForm::int8, TableForm::nf4}) {
        SCOPED_TRACE(fmt::format("{} {} in {} bits", test::name_of(path), model, bits_of(form)));
        const Result expected = result_of({.model = model, .path = path}, decoded_state({.model = model, .path = path}, form));
        for (const bool on_host : {false, true}) {
          if (on_host && !gpu::supports(test::device().info(), gpu::HostMemory::direct)) continue;
          expect_close(result_of({.model = model, .path = path, .stream = {.embedding = on_host, .head = on_host, .tables = form}, .slice = 512}),
                       expected, path == ProductPath::f32 ? 1e-5 : 2e-3);
        }
        // Not far from what 16 bits give, and not the same.
        const double far = test::relative_error(expected.passes.losses, in_f16.passes.losses);
        EXPECT_GT(far, 1e-6);
        EXPECT_LT(far, form == TableForm::int8 ? 5e-3 : 8e-2);
      }
    }
  }
}

struct PairResult {
  std::vector<float> losses, base_losses, gradients;
  std::vector<PreferenceStatistics> statistics;

  std::vector<float> numbers() const {
    std::vector<float> all;
    for (const auto& s : statistics) all.insert(all.end(), {s.loss, s.chosen_nll, s.chosen_logps, s.rejected_logps, s.chosen_reward, s.rejected_reward, s.preferred});
    return all;
  }
};

// Two pairs of answers, their losses and what these are to the adapters; and what the base alone, DPO's reference, says of them.
PairResult pairs_of(const Setting& setting, const ModelState& state, PreferenceLoss kind) {
  auto& device = test::device();
  Model model(state, model_options(setting));
  const auto batch = batch_for(state.config());
  const std::vector<std::uint32_t> sides = {0, 9, 19, 30, 46};
  const std::vector<float> reference = {-70, -75, -85, -120};
  TokenStream pairs = batch.stream();
  pairs.sides = sides;
  if (kind == PreferenceLoss::dpo) pairs.reference = reference;
  gpu::Recorder recorder(device);
  const DeviceStream stream = model.upload(recorder, pairs);
  PairResult result;
  const Head::Loss base = model.base_loss(recorder, stream);
  recorder.submit();
  result.base_losses = device.read<float>(base.loss);
  const Preference preference{.kind = kind, .sides = stream.sides, .reference = stream.reference,
                              .statistics = device.tensor(DType::f32, {2, preference_statistics}, "statistics"), .beta = 0.2f,
                              .pair_factor = 0.5f, .token_factor = kind == PreferenceLoss::orpo ? 0.05f : 0.0f};
  const LoraWeights& lora = *state.lora_mirror().train();
  recorder.clear(lora.grads);
  const Head::Loss loss = model.loss_and_gradients(recorder, stream, {.preference = &preference});
  recorder.submit();
  result.losses = device.read<float>(loss.loss);
  result.statistics = device.read<PreferenceStatistics>(preference.statistics);
  result.gradients = device.read<float>(lora.grads);
  return result;
}

PairResult pairs_of(const Setting& setting, PreferenceLoss kind) { return pairs_of(setting, state_of(setting), kind); }

void expect_close(const PairResult& given, const PairResult& expected, double tolerance) {
  EXPECT_LE(test::relative_error(given.losses, expected.losses), tolerance);
  EXPECT_LE(test::relative_error(given.base_losses, expected.base_losses), tolerance);
  EXPECT_LE(test::relative_error(given.numbers(), expected.numbers()), tolerance);
  EXPECT_LE(test::relative_error(given.gradients, expected.gradients), 20 * tolerance);
}

// Pairs' gradients take a second pass, which in slices is the one that there is anyway.
TEST(SlicedHead, OnTheHostGivesPairsTheSameLossesAndGradients) {
  if (test::must_skip(gpu::supports(test::device().info(), gpu::HostMemory::direct))) GTEST_SKIP() << "Kernels cannot read host memory.";
  for (const ProductPath path : test::product_paths()) {
    for (const std::string& model : {tied(), untied()}) {
      for (const auto kind : {PreferenceLoss::dpo, PreferenceLoss::orpo}) {
        SCOPED_TRACE(fmt::format("{} {} {}", test::name_of(path), model, name_of(kind)));
        const PairResult whole = pairs_of({.model = model, .path = path}, kind);
        ASSERT_GT(*std::max_element(whole.gradients.begin(), whole.gradients.end()), 0.0f);
        ASSERT_GT(test::relative_error(whole.base_losses, whole.losses), 1e-3) << "the adapter does nothing";
        for (const auto memory : {gpu::HostMemory::staged, gpu::HostMemory::carried}) {
          const StreamOptions stream{.memory = memory, .head = true};
          expect_close(pairs_of({.model = model, .path = path, .stream = stream, .slice = 512}, kind), whole, tolerance_of(path));
        }
      }
    }
  }
}

TEST(SlicedHead, InCodesGivesPairsTheLossesAndGradientsOfTheDecodedOne) {
  const bool host = gpu::supports(test::device().info(), gpu::HostMemory::direct);
  for (const ProductPath path : test::product_paths()) {
    for (const TableForm form : {TableForm::int8, TableForm::nf4}) {
      for (const auto kind : {PreferenceLoss::dpo, PreferenceLoss::orpo}) {
        SCOPED_TRACE(fmt::format("{} {} bits {}", test::name_of(path), bits_of(form), name_of(kind)));
        const PairResult expected = pairs_of({.path = path}, decoded_state({.path = path}, form), kind);
        for (const bool on_host : {false, true}) {
          if (on_host && !host) continue;
          const StreamOptions stream{.embedding = on_host, .head = on_host, .tables = form};
          expect_close(pairs_of({.path = path, .stream = stream, .slice = 512, .chunk = 64}, kind), expected, path == ProductPath::f32 ? 1e-5 : 2e-3);
        }
      }
    }
  }
}

// A tied table on the host has the embedding's rows alone then; the head that is trained is read in slices where it is.
TEST(SlicedHead, IsTrainedAsAWholeOne) {
  auto& device = test::device();
  if (test::must_skip(gpu::supports(device.info(), gpu::HostMemory::direct))) GTEST_SKIP() << "Kernels cannot read host memory.";
  const auto gradient_of = [&](const Setting& setting) {
    ModelState state = state_of(setting);
    state.train_head({});
    Model model(state, model_options(setting));
    const auto batch = batch_for(state.config());
    const Tensor gradient = state.trained_head()->gradient();
    gpu::Recorder recorder(device);
    const DeviceStream stream = model.upload(recorder, batch.stream());
    recorder.clear(gradient);
    recorder.clear(state.lora_mirror().train()->grads);
    model.loss_and_gradients(recorder, stream, {}, {}, gradient);
    recorder.submit();
    return device.read<float>(gradient);
  };
  for (const ProductPath path : test::product_paths()) {
    const auto whole = gradient_of({.path = path});
    ASSERT_GT(*std::max_element(whole.begin(), whole.end()), 0.0f);
    EXPECT_LE(test::relative_error(gradient_of({.path = path, .stream = {.head = true}, .slice = 512, .chunk = 64}), whole), 20 * tolerance_of(path));
  }
}

TEST(SlicedHead, GeneratesTheSame) {
  if (test::must_skip(gpu::supports(test::device().info(), gpu::HostMemory::direct))) GTEST_SKIP() << "Kernels cannot read host memory.";
  const auto logits_of = [](const Setting& setting) {
    const ModelState state = state_of(setting);
    Generator generator(state, {.capacity = 64});
    const std::vector<std::uint32_t> text = {1, 20, 300, 4000, 50, 60, 70};
    std::vector<float> all;
    for (const std::size_t length : {4u, 5u, 6u, 7u}) {
      for (const float logit : generator.logits(std::span(text).first(length))) all.push_back(logit);
    }
    return all;
  };
  EXPECT_LE(test::relative_error(logits_of({.stream = {.head = true}}), logits_of({})), 1e-6);
}

TEST(SlicedHead, TakesThePlannedBytes) {
  auto& device = test::device();
  const bool host = gpu::supports(device.info(), gpu::HostMemory::direct);
  for (const ProductPath path : test::product_paths()) {
    for (const std::string& model : {tied(), untied()}) {
      const ModelConfig config = read_model_config(model);
      for (const TableForm form : {TableForm::dense, TableForm::int8, TableForm::nf4}) {
        for (const auto& [embedding, head] : {std::pair{false, false}, {true, false}, {true, true}}) {
          if (!host && (embedding || head)) continue;
          const Setting setting{.model = model, .path = path, .stream = {.embedding = embedding, .head = head, .tables = form}, .slice = 512};
          const MemoryPlan plan = plan_memory(device, config, model_options(setting), {.rank = 8, .lora_alpha = 16});
          const MemoryPlan usual = plan_memory(device, config, model_options({.model = model, .path = path}), {.rank = 8, .lora_alpha = 16});
          const gpu::MemoryUse before = device.memory();
          const ModelState state = state_of(setting);
          const gpu::MemoryUse loaded = device.memory();
          const ModelState other = state_of({.model = model, .path = path});
          EXPECT_EQ(loaded.host - before.host, plan.host_weights);
          EXPECT_EQ(usual.frozen_weights - plan.frozen_weights, device.memory().current - loaded.current - (loaded.current - before.current));
          const std::uint64_t beside = device.memory().current;
          const Model one(state, model_options(setting));
          const std::uint64_t first = device.memory().current - beside;
          const Model two(other, model_options({.model = model, .path = path}));
          EXPECT_EQ(plan.head + (device.memory().current - beside - first), usual.head + first);
        }
      }
    }
  }
}

TEST(SlicedHead, RefusesWhatItCannotKeep) {
  const gpu::AdapterInfo& info = test::device().info();
  test::expect_error<UsageError>([] { table_form_of(5); }, "there are 16, 8 and 4");
  test::expect_error<UsageError>([&] { check_table(info, 100, 100, {.form = TableForm::nf4}, "embedding"); }, "no multiple of 64");
  gpu::AdapterInfo without = info;
  without.limits.host_pointer_alignment = 0;
  test::expect_error<UsageError>([&] { check_table(without, 100, 128, {.on_host = true}, "embedding"); }, "it stays on the device");
}

}  // namespace
}  // namespace nibble::sliced_head_test
