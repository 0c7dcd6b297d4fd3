#include "nibble/base/error.h"
#include "nibble/gpu/host_tensor.h"
#include "nibble/train/placement.h"
#include "nibble/train/trainer.h"
#include "tests/support/disk.h"
#include "tests/train/golden_run.h"

namespace nibble::memory_test {
namespace {

constexpr auto keep = Activations::keep, recompute_mlp = Activations::recompute_mlp, recompute = Activations::recompute;

TEST(MemoryLimit, IsReadWithItsUnit) {
  EXPECT_EQ(memory_limit_of("2GiB").bytes, std::uint64_t{2} << 30);
  EXPECT_EQ(memory_limit_of("2048MiB").bytes, std::uint64_t{2} << 30);
  EXPECT_EQ(memory_limit_of("8GB").bytes, 8'000'000'000u);
  EXPECT_EQ(memory_limit_of("1.5KiB").bytes, 1536u);
  EXPECT_EQ(memory_limit_of("500000000").bytes, 500'000'000u);
  EXPECT_EQ(memory_limit_of("80%").part, 0.8);
  for (const char* wrong : {"", "GiB", "-2GiB", "0", "nan", "inf", "2 GiB", "2gib", "101%", "0%", "1e300TiB", "2GiB2"}) {
    EXPECT_THROW(memory_limit_of(wrong), UsageError) << wrong;
  }
}

TEST(MemoryLimit, HoldsOnTheDevice) {
  gpu::Device device;
  const std::uint64_t before = device.memory().current;
  device.limit_memory(before + (8 << 20));
  const Tensor first = device.tensor(DType::f32, {1 << 20}, "first");
  try {
    device.tensor(DType::f32, {(1 << 20) + 1}, "second");
    FAIL();
  } catch (const OutOfDeviceMemory& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("4194560"), text.npos) << text;
    EXPECT_NE(text.find(std::to_string(before + (8 << 20))), text.npos) << text;
  }
  EXPECT_EQ(device.memory().current, before + (4 << 20));
  const Tensor second = device.tensor(DType::f32, {1 << 20}, "second");
  EXPECT_EQ(device.memory().current, before + (8 << 20));
  device.limit_memory(0);
  device.tensor(DType::f32, {1}, "third");
}

// Dawn gives a buffer of 3 MiB the room of one of 4, and one of 5 MiB no more than it needs.
TEST(MemoryCount, IsWhatDawnTakes) {
  gpu::Device device;
  if (test::must_skip(device.driver_memory().has_value())) GTEST_SKIP() << "Dawn does not say what it takes.";
  std::vector<Tensor> tensors;
  for (const auto& [mebibytes, taken] : {std::pair{3u, 4u}, {5u, 5u}}) {
    const std::uint64_t before = device.memory().current, driver_before = *device.driver_memory();
    for (int i = 0; i < 8; ++i) tensors.push_back(device.tensor(DType::u32, {mebibytes << 18}, "tensor"));
    const std::uint64_t counted = device.memory().current - before, got = *device.driver_memory() - driver_before;
    EXPECT_EQ(counted, std::uint64_t{8} * taken << 20);
    EXPECT_LE(counted, got + (8 << 20)) << "of a block of 8 MiB a part may have been free";
    EXPECT_LE(got, counted + (8 << 20));
  }
}

struct Setting {
  std::uint32_t tokens, labels, rank;
  ActivationChoices activations = {};
  std::uint32_t head_chunk = 0, mlp_chunk = 0;
  bool one_room = false, dropout = false;
  std::uint32_t offloaded = 0, streamed = 0;
  std::optional<TrainedHeadOptions> head = {};
  std::vector<Projection> targets = {all_projections.begin(), all_projections.end()};
  bool dora = false;
  MomentsOptions moments = {};
  bool double_quant = false;
};

const std::vector<Setting>& settings() {
  static const TrainedHeadOptions on_host{.moments = MomentKind::eight_bit, .place = MemoryPlace::host};
  static const std::vector<Setting> all = {
      {.tokens = 64, .labels = 64, .rank = 8},
      {.tokens = 100, .labels = 17, .rank = 16, .activations = {recompute}},
      {.tokens = 1000, .labels = 1000, .rank = 4, .activations = {keep, keep, recompute_mlp, recompute}, .head_chunk = 128, .streamed = 1},
      {.tokens = 777, .labels = 300, .rank = 16, .activations = {recompute_mlp}, .one_room = true},
      {.tokens = 2048, .labels = 2048, .rank = 16, .activations = {recompute}, .head_chunk = 64, .one_room = true, .dropout = true,
       .offloaded = 4, .streamed = 4},
      {.tokens = 1111, .labels = 100, .rank = 8, .activations = {recompute}, .mlp_chunk = 256, .one_room = true, .dropout = true},
      {.tokens = 600, .labels = 100, .rank = 16, .activations = {recompute_mlp, recompute, recompute_mlp, recompute}, .mlp_chunk = 128,
       .dora = true},
      {.tokens = 333, .labels = 333, .rank = 16, .head = TrainedHeadOptions{}},
      {.tokens = 512, .labels = 100, .rank = 8, .activations = {keep, recompute, recompute, recompute}, .head = on_host},
      {.tokens = 300, .labels = 300, .rank = 8, .dropout = true, .targets = {Projection::q, Projection::v}},
      {.tokens = 200, .labels = 50, .rank = 8, .activations = {recompute}, .dora = true},
      {.tokens = 200, .labels = 50, .rank = 16, .streamed = 3, .targets = {Projection::up, Projection::down}, .dora = true},
      {.tokens = 64, .labels = 64, .rank = 16, .moments = {.kind = MomentKind::eight_bit}},
      {.tokens = 64, .labels = 64, .rank = 8, .double_quant = true},
      {.tokens = 200, .labels = 50, .rank = 8, .streamed = 3, .dora = true, .double_quant = true},
      {.tokens = 64, .labels = 64, .rank = 16, .moments = {.place = MemoryPlace::host, .piece_blocks = 64}},
      {.tokens = 64, .labels = 64, .rank = 16, .offloaded = 2, .dora = true, .moments = {.kind = MomentKind::eight_bit, .place = MemoryPlace::host}},
  };
  return all;
}

// On every path: what stands on the device once a model is made for training is what the plan says, and never more.
TEST(MemoryPlan, IsWhatIsAllocated) {
  gpu::Device& device = test::device();
  const std::uint64_t others = device.memory().current - gpu::buffer_bytes(gpu::params_arena_bytes);
  std::size_t seen = 0;
  for (const ProductPath path : test::product_paths()) {
    for (const Setting& setting : settings()) {
      LoraConfig lora{.rank = setting.rank, .lora_alpha = 16, .use_dora = setting.dora, .target_modules = setting.targets};
      ModelState state = ModelState::load(device, test::source_path("models/tiny-qwen3"),
                                          {.path = path, .lora = lora, .moments = setting.moments, .base_head = !setting.head, .residency = spread_streamed(4, setting.streamed),
                                           .stream = {.double_quant = setting.double_quant}});
      if (setting.head) state.train_head(*setting.head);
      const ModelOptions options{.path = path, .residency = spread_streamed(4, setting.streamed), .stream = {.double_quant = setting.double_quant},
                                 .activations = setting.activations, .mlp_chunk = setting.mlp_chunk, .one_decoded_room = setting.one_room,
                                 .offloaded_inputs = setting.offloaded,
                                 .max_tokens = setting.tokens, .max_labels = setting.labels, .head_chunk = setting.head_chunk,
                                 .lora_dropout = setting.dropout};
      Trainer trainer(state, {.model = options, .lora_dropout = setting.dropout ? 0.1 : 0.0});
      trainer.model();
      std::optional<TrainedHeadOptions> head = setting.head;
      if (head) head->path = path;
      const MemoryPlan plan = plan_memory(device, state.config(), options, lora, head, setting.moments);
      const std::uint64_t allocated = device.memory().current - others;
      SCOPED_TRACE(fmt::format("{}, setting {}", test::name_of(path), seen));
      EXPECT_LE(allocated, plan.total());
      EXPECT_EQ(device.memory().host, plan.host_total() - plan.host_staging);
      EXPECT_GE(static_cast<double>(allocated), 0.98 * static_cast<double>(plan.total()));
      ++seen;
    }
  }
  EXPECT_GE(seen, settings().size());
}

TEST(MemoryPlan, CountsRowsOfTokens) {
  gpu::Device& device = test::device();
  const std::uint64_t others = device.memory().current - gpu::buffer_bytes(gpu::params_arena_bytes);
  for (const auto& [folder, of_head] : {std::pair{"models/tiny-qwen3", 0u}, std::pair{"tests/golden/llama/model", 3000u}}) {
    for (const ProductPath path : test::product_paths()) {
      ModelState state = ModelState::load(device, test::source_path(folder), {.path = path, .rows_change = true});
      LoraAdapter adapter = make_lora_adapter(state.config(), {.rank = 4, .lora_alpha = 8});
      for (std::uint32_t id = 0; id < 4000; ++id) adapter.config.trained_tokens.push_back(id);
      for (std::uint32_t id = 0; id < of_head; ++id) adapter.config.trained_head_tokens.push_back(id);
      adapter.token_rows.resize(std::size_t{4000} * state.hidden_size());
      adapter.head_rows.resize(std::size_t{of_head} * state.hidden_size());
      state.set_lora(adapter, true);
      const ModelOptions options{.path = path, .max_tokens = 100, .max_labels = 50};
      Trainer trainer(state, {.model = options});
      trainer.model();
      const MemoryPlan plan = plan_memory(device, state.config(), options, adapter.config);
      const std::uint64_t allocated = device.memory().current - others;
      SCOPED_TRACE(fmt::format("{}, {}", folder, test::name_of(path)));
      EXPECT_LE(allocated, plan.total());
      EXPECT_GE(static_cast<double>(allocated), 0.98 * static_cast<double>(plan.total()));
      EXPECT_GE(plan.adapters, 5u * 4 * (4000 + of_head) * state.hidden_size());
    }
  }
}

// Experts with adapters and without, layers that keep their rows and layers that share them.
TEST(MemoryPlan, OfAMixtureOfExpertsIsWhatIsAllocated) {
  gpu::Device& device = test::device();
  const std::uint64_t others = device.memory().current - gpu::buffer_bytes(gpu::params_arena_bytes);
  const std::vector<Setting> all = {{.tokens = 2500, .labels = 100, .rank = 8, .activations = {keep, recompute_mlp}},
                                    {.tokens = 700, .labels = 700, .rank = 4, .targets = {Projection::q, Projection::v}}};
  for (const ProductPath path : test::product_paths()) {
    for (const Setting& setting : all) {
      const LoraConfig lora{.rank = setting.rank, .lora_alpha = 16, .target_modules = setting.targets};
      ModelState state = ModelState::load(device, test::source_path("tests/golden/qwen3-moe/model"), {.path = path, .lora = lora});
      const ModelOptions options{.path = path, .activations = setting.activations, .max_tokens = setting.tokens, .max_labels = setting.labels};
      Trainer trainer(state, {.model = options});
      trainer.model();
      const MemoryPlan plan = plan_memory(device, state.config(), options, lora, {});
      const std::uint64_t allocated = device.memory().current - others;
      SCOPED_TRACE(fmt::format("{}, {} tokens", test::name_of(path), setting.tokens));
      EXPECT_LE(allocated, plan.total());
      EXPECT_GE(static_cast<double>(allocated), 0.98 * static_cast<double>(plan.total()));
    }
  }
}

constexpr std::uint64_t steps = 6;

struct Limited {
  test::TrainedCurve curve;
  TrainResult result;
};

// A run on a device of its own, whose memory nothing else takes.
Limited run(TrainOptions options, std::uint64_t limit, ProductPath path = ProductPath::f32) {
  const test::TemporaryFolder folder;
  options.output = folder / "run";
  options.max_steps = steps;
  options.vram_limit.bytes = limit;
  gpu::Device device;
  Limited limited;
  limited.result = train(options, device, path,
                         {.plan = [&](const RunPlan& plan) { limited.curve.plan = plan; },
                          .step = [&](const StepRecord& record) { limited.curve.steps.push_back(record); }});
  return limited;
}

void expect_same(const test::TrainedCurve& a, const test::TrainedCurve& b, double tolerance) {
  ASSERT_EQ(a.steps.size(), steps);
  ASSERT_EQ(b.steps.size(), steps);
  for (std::size_t i = 0; i < steps; ++i) EXPECT_NEAR(a.steps[i].loss / b.steps[i].loss, 1.0, tolerance) << "step " << i + 1;
}

void expect_kept(const Limited& limited, std::uint64_t limit) {
  EXPECT_LE(limited.curve.plan.memory.total(), limit);
  EXPECT_LE(limited.result.peak_bytes, limited.curve.plan.memory.total());
  EXPECT_GE(static_cast<double>(limited.result.peak_bytes), 0.98 * static_cast<double>(limited.curve.plan.memory.total()));
}

const Limited& without_limit() {
  static const Limited curve = run(test::golden_options({}), 0);
  return curve;
}

std::size_t layers_with(const ActivationChoices& choices, Activations which) {
  std::size_t count = 0;
  for (std::uint32_t layer = 0; layer < 4; ++layer) count += choice_of(choices, layer) == which;
  return count;
}

// An eighth of what all layers keep does not fit: some keep everything, others do not, and the curve is the same bits.
TEST(VramLimit, MixesWhatLayersKeep) {
  const MemoryPlan& whole = without_limit().curve.plan.memory;
  TrainOptions options = test::golden_options({});
  options.shared_decode = false;
  options.residency = Residency::resident;
  options.offload_inputs = 0;
  options.head_chunk = without_limit().curve.plan.model.head_chunk;
  const std::uint64_t limit = whole.total() - whole.activations / 8;
  const Limited limited = run(options, limit);
  expect_kept(limited, limit);
  const ActivationChoices& choices = limited.curve.plan.model.activations;
  EXPECT_GT(layers_with(choices, keep), 0u) << describe(choices, 4);
  EXPECT_LT(layers_with(choices, keep), 4u) << describe(choices, 4);
  expect_same(limited.curve, without_limit().curve, 0);
}

// Between all and the least, whatever the plan gives up.
TEST(VramLimit, NeverChangesTheCurve) {
  const std::uint64_t whole = without_limit().curve.plan.memory.total();
  for (const std::uint64_t parts : {8u, 7u, 6u}) {
    const std::uint64_t limit = whole / 10 * parts;
    SCOPED_TRACE(limit);
    const Limited limited = run(test::golden_options({}), limit);
    expect_kept(limited, limit);
    expect_same(limited.curve, without_limit().curve, 1e-4);
  }
}

// The least that is named for a limit that is too small holds the run, with everything given up that can be.
TEST(VramLimit, NamesTheLeastWhichThenWorks) {
  const test::TemporaryFolder folder;
  std::uint64_t least = 0;
  try {
    run(test::golden_options({}), 1 << 20);
    FAIL();
  } catch (const UsageError& error) {
    const std::string text = error.what();
    const std::size_t at = text.find('(');
    ASSERT_NE(at, text.npos) << text;
    least = std::stoull(text.substr(at + 1));
  }
  ASSERT_LT(least, without_limit().curve.plan.memory.total());
  EXPECT_THROW(run(test::golden_options({}), least - 1), UsageError);
  const Limited limited = run(test::golden_options({}), least);
  expect_kept(limited, least);
  EXPECT_EQ(limited.curve.plan.memory.total(), least);
  EXPECT_TRUE(limited.curve.plan.model.one_decoded_room);
  EXPECT_EQ(count_of(limited.curve.plan.model.residency, 4, Residency::streamed), 4u);
  EXPECT_EQ(limited.curve.plan.model.offloaded_inputs, gpu::has_host_tensors(test::device().info()) ? 4u : 0u);
  EXPECT_EQ(limited.curve.plan.model.activations, ActivationChoices{recompute});
  expect_same(limited.curve, without_limit().curve, 1e-4);
}

// What was trained is saved, and the run that goes on from there ends in the same bytes.
TEST(OutOfMemory, SavesWhatWasTrained) {
  const test::TemporaryFolder folder;
  TrainOptions options = test::golden_options(folder / "broken");
  options.max_steps = steps;
  options.save_every = 0;
  gpu::Device device;
  std::vector<double> losses;
  try {
    train(options, device, ProductPath::f32, {.step = [&](const StepRecord& record) {
            losses.push_back(record.loss);
            if (record.step == 3) device.simulate_out_of_memory();
          }});
    FAIL();
  } catch (const OutOfDeviceMemory& error) {
    EXPECT_NE(std::string(error.what()).find("step 4"), std::string::npos) << error.what();
  }
  EXPECT_TRUE(std::filesystem::exists(options.output / "adapter_model.safetensors"));
  options.resume = "auto";
  train(options, device, ProductPath::f32, {.step = [&](const StepRecord& record) { losses.push_back(record.loss); }});
  ASSERT_EQ(losses.size(), steps);
  for (std::size_t i = 0; i < steps; ++i) EXPECT_EQ(losses[i], without_limit().curve.steps[i].loss) << "step " << i + 1;
}

// The same where the disk fails from which layers are read.
TEST(FailingDisk, SavesWhatWasTrained) {
  const test::TemporaryFolder folder;
  const test::FolderOnDisk disk;
  TrainOptions options = test::golden_options(folder / "broken");
  options.max_steps = steps;
  options.save_every = 0;
  options.residency = Residency::streamed;
  options.stream = {.on_disk = true, .folder = disk.path()};
  gpu::Device device;
  std::vector<double> losses;
  const auto run_on = [&](std::uint64_t breaks_after) {
    train(options, device, ProductPath::f32, {.step = [&](const StepRecord& record) {
            losses.push_back(record.loss);
            if (record.step == breaks_after) std::filesystem::resize_file(test::scratch_of(disk.path()), 0);
          }});
  };
  test::expect_error<DataError>([&] { run_on(3); }, disk.path().string(), "ends at byte", "up to step 3 is saved");
  EXPECT_TRUE(std::filesystem::exists(options.output / "adapter_model.safetensors"));
  options.resume = "auto";
  run_on(0);
  ASSERT_EQ(losses.size(), steps);
  for (std::size_t i = 0; i < steps; ++i) EXPECT_EQ(losses[i], without_limit().curve.steps[i].loss) << "step " << i + 1;
}

}  // namespace
}  // namespace nibble::memory_test
