#include "nibble/train/placement.h"

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/gpu/host_tensor.h"
#include "nibble/train/step_work.h"
#include "nibble/weights/nf4_room.h"
#include "nibble/weights/shapes.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"
#include "tests/train/placements.h"

#include <algorithm>

namespace nibble::placement_test {
namespace {

constexpr BatchRoom room{.tokens = 2048, .labels = 2048};
constexpr StepRates rates{.flops = 1e14, .memory_bytes = 1e12, .link_bytes = 2e10};
constexpr auto keep = Activations::keep, recompute_mlp = Activations::recompute_mlp, recompute = Activations::recompute;

Placement of_memory(std::uint64_t bytes, const TrainOptions& options, bool promised = true) {
  return place(options, test::device(), shape_by_name("qwen3-4b"), ProductPath::f32, room, {bytes, promised}, rates);
}

TrainOptions with_head() {
  TrainOptions options;
  options.train_head = true;
  return options;
}

std::uint64_t least_of(const TrainOptions& options) { return of_memory(1, options, false).memory.total(); }

// From all that there may be to the least: never above, and with less memory never faster.
TEST(Placement, GivesUpOnlyWhatItMust) {
  const TrainOptions options = with_head();
  const Placement all = of_memory(0, options);
  EXPECT_EQ(all.model.activations, ActivationChoices{keep});
  EXPECT_EQ(all.head->place, MemoryPlace::device);
  EXPECT_EQ(all.moments.place, MemoryPlace::device);
  EXPECT_FALSE(all.model.one_decoded_room);
  const std::uint64_t whole = all.memory.total(), least = least_of(options);
  EXPECT_EQ(of_memory(whole, options).model.activations, ActivationChoices{keep});
  test::expect_never_faster_with_less(all, least, [&](std::uint64_t bytes) { return of_memory(bytes, options); });
  const Placement smallest = of_memory(least, options);
  EXPECT_EQ(smallest.model.activations, ActivationChoices{recompute});
  EXPECT_EQ(smallest.head->place, MemoryPlace::host);
  EXPECT_EQ(smallest.moments.place, MemoryPlace::host);
  EXPECT_TRUE(smallest.model.one_decoded_room);
  EXPECT_EQ(count_of(smallest.model.residency, 36, Residency::streamed), 36u);
}

// Nothing else that the planner may choose is both small enough and faster.
TEST(Placement, IsTheFastestOfAllMixturesOfLayers) {
  TrainOptions options;
  options.shared_decode = false;
  options.head_chunk = 64;
  options.residency = Residency::resident;
  options.offload_inputs = 0;
  options.lora_state = MemoryPlace::device;
  const ModelConfig config = shape_by_name("qwen3-4b");
  const std::uint64_t whole = of_memory(0, options).memory.total(), least = least_of(options), memory = (whole + least) / 2;
  const Placement placed = of_memory(memory, options);
  const StepWork work(config, options.lora.rank, options.max_length, false);
  double best = 1e300;
  for (std::uint32_t all = 0; all <= config.num_layers; all += 1) {
    for (std::uint32_t mlp = 0; mlp + all <= config.num_layers; mlp += 1) {
      ModelOptions model = placed.model;
      model.activations.assign(config.num_layers, keep);
      std::fill(model.activations.end() - all - mlp, model.activations.end(), recompute_mlp);
      std::fill(model.activations.end() - all, model.activations.end(), recompute);
      if (plan_memory(test::device(), config, model, options.lora).total() > memory) continue;
      best = std::min(best, work.again(model.activations));
    }
  }
  EXPECT_DOUBLE_EQ(work.again(placed.model.activations), best);
}

TEST(Placement, WhatIsSaidHolds) {
  TrainOptions options = with_head();
  options.gradient_checkpointing = Checkpointing::off;
  options.head_state = MemoryPlace::device;
  options.lora_state = MemoryPlace::device;
  options.shared_decode = false;
  options.head_chunk = 128;
  options.stream_layers = 5;
  options.offload_inputs = 0;
  const Placement small = of_memory(1, options, false);
  EXPECT_EQ(small.model.activations, ActivationChoices{keep});
  EXPECT_EQ(small.head->place, MemoryPlace::device);
  EXPECT_EQ(small.moments.place, MemoryPlace::device);
  EXPECT_FALSE(small.model.one_decoded_room);
  EXPECT_EQ(small.model.head_chunk, 128u);
  EXPECT_EQ(count_of(small.model.residency, 36, Residency::streamed), 5u);
  EXPECT_EQ(small.model.offloaded_inputs, 0u);
  options.gradient_checkpointing = Checkpointing::mlp;
  options.head_state = MemoryPlace::host;
  options.lora_state = MemoryPlace::host;
  options.shared_decode = true;
  const Placement large = of_memory(std::uint64_t{1} << 50, options);
  EXPECT_EQ(large.model.activations, ActivationChoices{recompute_mlp});
  EXPECT_EQ(large.head->place, MemoryPlace::host);
  EXPECT_EQ(large.moments.place, MemoryPlace::host);
  EXPECT_TRUE(large.model.one_decoded_room);
}

// Their way there and back is what it costs; kinds are never chosen, as they change results.
TEST(Placement, MomentsOfAdaptersLieOnTheHostWhereTheLimitNeedsIt) {
  TrainOptions options;
  options.gradient_checkpointing = Checkpointing::on;
  options.residency = Residency::resident;
  options.offload_inputs = 0;
  options.shared_decode = true;
  options.head_chunk = 64;
  options.mlp_chunk = room.tokens;  // all
  const Placement all = of_memory(0, options);
  const std::uint64_t whole = all.memory.total(), bytes = 8 * lora_elements(shape_by_name("qwen3-4b"), options.lora);
  const Placement less = of_memory(whole - 1, options);
  EXPECT_EQ(less.moments.place, MemoryPlace::host);
  EXPECT_EQ(less.memory.host_moments, bytes);
  EXPECT_LT(less.memory.adapters, all.memory.adapters - bytes + (20 << 20)) << "but for the rooms of pieces";
  const bool recorded = gpu::has_host_tensors(test::device().info());
  EXPECT_NEAR(less.extra_seconds - all.extra_seconds, 2.0 * static_cast<double>(bytes) / (recorded ? rates.link_bytes : 1.2e9), 1e-6);
  options.lora_moments = MomentKind::eight_bit;
  const Placement codes = of_memory(whole - 1, options);
  EXPECT_EQ(codes.moments.place, MemoryPlace::device);
  EXPECT_EQ(codes.moments.kind, MomentKind::eight_bit);
  EXPECT_LT(codes.memory.adapters, all.memory.adapters - bytes / 10 * 7);
  EXPECT_EQ(least_of({}), of_memory(least_of({}), {}).memory.total());
  EXPECT_EQ(of_memory(least_of({}), {}).moments.kind, MomentKind::f32);
}

// The largest chunk of the MLP that is small enough, and none where all rows are.
TEST(Placement, TakesTheLargestChunkOfTheMlpThatFits) {
  TrainOptions options;
  options.shared_decode = true;
  options.head_chunk = 64;
  options.lora_state = MemoryPlace::device;
  options.residency = Residency::streamed;
  options.offload_inputs = 0;
  options.gradient_checkpointing = Checkpointing::on;
  const auto taken = [&](std::uint64_t memory) { return of_memory(memory, options); };
  const Placement all = taken(std::uint64_t{1} << 50);
  EXPECT_EQ(all.model.mlp_chunk, 0u);
  std::uint64_t bytes = all.memory.total();
  double extra = all.extra_seconds;
  for (const std::uint32_t rows : {1024u, 512u, 256u}) {
    const Placement placement = taken(bytes - 1);
    EXPECT_EQ(placement.model.mlp_chunk, rows);
    EXPECT_LT(placement.memory.total(), bytes);
    EXPECT_GT(placement.extra_seconds, extra);
    bytes = placement.memory.total();
    extra = placement.extra_seconds;
  }
  EXPECT_THROW(taken(bytes - 1), UsageError);
  options.mlp_chunk = 192;
  EXPECT_EQ(taken(std::uint64_t{1} << 50).model.mlp_chunk, 192u);
  options.mlp_chunk = 100;
  test::expect_error<UsageError>([&] { taken(std::uint64_t{1} << 50); }, "give a multiple of 64");
  options.mlp_chunk = 192;
  options.gradient_checkpointing = Checkpointing::off;
  test::expect_error<UsageError>([&] { taken(std::uint64_t{1} << 50); }, "gradient checkpointing has to allow");
}

TEST(Placement, RefusesWhatCannotBePromised) {
  const std::uint64_t least = least_of({});
  EXPECT_EQ(of_memory(least, {}).memory.total(), least);
  try {
    of_memory(least - 1, {});
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find(std::to_string(least)), std::string::npos) << error.what();
  }
}

TEST(Placement, WithoutATrainedHeadThereIsNone) { EXPECT_FALSE(of_memory(0, {}).head.has_value()); }

TEST(Placement, ABudgetIsThatOfTheOptions) {
  gpu::AdapterInfo info{.name = "card", .memory_bytes = 1000};
  TrainOptions options;
  EXPECT_EQ(memory_budget(options, info).bytes, 900u);
  EXPECT_FALSE(memory_budget(options, info).promised);
  options.vram_limit = {.part = 0.5};
  EXPECT_EQ(memory_budget(options, info).bytes, 500u);
  EXPECT_TRUE(memory_budget(options, info).promised);
  info.memory_bytes = 0;
  EXPECT_THROW(memory_budget(options, info), UsageError);
  options.vram_limit = {.bytes = 77};
  EXPECT_EQ(memory_budget(options, info).bytes, 77u);
  EXPECT_EQ(memory_budget(options, info).ram, 0u);
  EXPECT_EQ(memory_budget(options, info, 1000).ram, 900u);
  EXPECT_FALSE(memory_budget(options, info, 1000).ram_promised);
  options.ram_limit = {.part = 0.5};
  EXPECT_EQ(memory_budget(options, info, 1000).ram, 500u);
  EXPECT_TRUE(memory_budget(options, info, 1000).ram_promised);
  test::expect_error<UsageError>([&] { memory_budget(options, info); }, "--ram-limit", "in bytes");
  options.ram_limit = {.bytes = 55};
  EXPECT_EQ(memory_budget(options, info).ram, 55u);
}

// Layers lie on a disk where host memory is too small for them, and where it is not said how they are kept.
TEST(Placement, PutsStreamedLayersOnADiskWhereHostMemoryNeedsIt) {
  TrainOptions options;
  const ModelConfig config = shape_by_name("qwen3-4b");
  const std::uint64_t least = least_of(options);
  const auto with_ram = [&](std::uint64_t ram, bool promised = true) {
    return place(options, test::device(), config, ProductPath::f32, room, {.bytes = least, .promised = true, .ram = ram, .ram_promised = promised}, rates);
  };
  const Placement in_ram = with_ram(0);
  EXPECT_FALSE(in_ram.model.stream.on_disk);
  EXPECT_EQ(in_ram.memory.disk_weights, 0u);
  const std::uint64_t ram = in_ram.memory.host_total();
  EXPECT_FALSE(with_ram(ram).model.stream.on_disk);
  EXPECT_EQ(with_ram(ram).extra_seconds, in_ram.extra_seconds);
  for (const bool promised : {true, false}) {
    const Placement small = with_ram(ram - 1, promised);
    EXPECT_TRUE(small.model.stream.on_disk);
    EXPECT_LE(small.memory.host_total(), ram - 1);
    EXPECT_LE(small.memory.total(), least);
    const std::uint32_t streamed = count_of(small.model.residency, config.num_layers, Residency::streamed);
    EXPECT_EQ(small.memory.disk_weights, streamed * nf4_layer_bytes(config));
    EXPECT_GT(small.extra_seconds, in_ram.extra_seconds) << "a disk is slower than the link";
  }
  std::uint64_t least_ram = 0;
  try {
    with_ram(1);
    FAIL();
  } catch (const UsageError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("--ram-limit"), text.npos) << text;
    least_ram = std::stoull(text.substr(text.find('(') + 1));
  }
  EXPECT_LT(least_ram, ram);
  EXPECT_EQ(with_ram(least_ram).memory.host_total(), least_ram);
  EXPECT_THROW(with_ram(least_ram - 1), UsageError);
  EXPECT_EQ(with_ram(1, false).memory.host_total(), least_ram) << "what is measured is kept as nearly as can be";
  // Also where the device is a little too small for all.
  for (const bool promised : {true, false}) {
    const Placement small = place(options, test::device(), config, ProductPath::f32, room,
                                  {.bytes = least - 1, .ram = ram - 1, .ram_promised = promised}, rates);
    EXPECT_TRUE(small.model.stream.on_disk);
    EXPECT_LE(small.memory.host_total(), ram - 1);
  }
  // What is said of them holds.
  options.stream.memory = gpu::HostMemory::staged;
  EXPECT_FALSE(with_ram(ram - 1, false).model.stream.on_disk);
  EXPECT_THROW(with_ram(least_ram), UsageError);
  options.stream = {.on_disk = true};
  EXPECT_TRUE(with_ram(0).model.stream.on_disk);
}

// A disk that is too small ends a run that asked for it, and is left alone where nobody did.
TEST(Placement, LooksAtTheDiskBeforeItIsWrittenTo) {
  const auto placed = [](const MemoryBudget& budget) {
    Placement placement{.model = {}, .head = {}, .moments = {}, .memory = {}};
    placement.model.stream = {.on_disk = budget.ram > 0, .folder = "/"};
    placement.memory.disk_weights = budget.ram > 0 ? std::uint64_t{1} << 60 : 0;
    return placement;
  };
  std::string warned;
  set_log_hook([&](LogLevel, std::string_view message) { warned = message; });
  EXPECT_FALSE(on_its_disk({}, {.ram = 5}, placed).model.stream.on_disk);
  EXPECT_NE(warned.find("stay in host memory"), warned.npos) << warned;
  warned.clear();
  EXPECT_THROW(on_its_disk({}, {.ram = 5, .ram_promised = true}, placed), DataError);
  EXPECT_THROW(on_its_disk({.on_disk = true}, {.ram = 5}, placed), DataError);
  EXPECT_EQ(on_its_disk({}, {}, placed).memory.disk_weights, 0u);
  EXPECT_TRUE(warned.empty());
  set_log_hook({});
}

// Of a step on the GPU that takes longer than reading a disk costs nothing.
TEST(Placement, WeighsTheReadingOfADisk) {
  TrainOptions options;
  options.residency = Residency::streamed;
  options.stream.on_disk = true;
  const double bytes = 36.0 * static_cast<double>(nf4_layer_bytes(shape_by_name("qwen3-4b")));
  const auto extra = [&](double flops, double disk_bytes) {
    const StepRates with{.flops = flops, .memory_bytes = 1e12, .link_bytes = 2e10, .disk_bytes = disk_bytes};
    return place(options, test::device(), shape_by_name("qwen3-4b"), ProductPath::f32, room, {}, with);
  };
  const Placement fast = extra(1e18, 2e9), slow = extra(1e18, 1e9);
  EXPECT_NEAR(slow.extra_seconds - fast.extra_seconds, 2 * bytes / 1e9 - 2 * bytes / 2e9, 0.01);
  EXPECT_EQ(extra(1e11, 2e9).extra_seconds, extra(1e11, 1e9).extra_seconds);
}

// As in a dry run, which has measured.
TEST(Placement, IsNotMovedByTheRatesOfItsEstimate) {
  const TrainOptions options;
  const std::uint64_t most = of_memory(1ull << 45, options).memory.total(), least = least_of(options);
  StepRates fast = rates;
  fast.flops *= 4;
  fast.link_bytes *= 10;
  for (const double part : {0.0, 0.3, 0.7, 1.0}) {
    const MemoryBudget budget{least + static_cast<std::uint64_t>(part * static_cast<double>(most - least)), true};
    const auto placed = [&](const std::optional<StepRates>& estimate) {
      return place(options, test::device(), shape_by_name("qwen3-4b"), ProductPath::f32, room, budget, rates, estimate);
    };
    const Placement alone = placed({}), estimated = placed(fast);
    EXPECT_EQ(estimated.model.residency, alone.model.residency);
    EXPECT_EQ(estimated.model.activations, alone.model.activations);
    EXPECT_EQ(estimated.model.offloaded_inputs, alone.model.offloaded_inputs);
    EXPECT_EQ(estimated.model.head_chunk, alone.model.head_chunk);
    EXPECT_EQ(estimated.memory.total(), alone.memory.total());
    EXPECT_LT(estimated.pass_seconds, alone.pass_seconds / 2);
    EXPECT_EQ(placed(rates).pass_seconds, alone.pass_seconds);
  }
}

}  // namespace
}  // namespace nibble::placement_test
