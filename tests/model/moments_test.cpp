#include "nibble/model/moments.h"

#include "nibble/base/dynamic_map.h"
#include "nibble/base/error.h"
#include "nibble/gpu/host_tensor.h"
#include "nibble/io/safetensors.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <array>
#include <map>

namespace nibble::moments_test {
namespace {

using test::device;
using test::expect_error;
using Which = Moments::Which;

// 301 blocks, so that pieces of 64 are five, the last of them short; the last block is short too.
constexpr std::uint32_t size = 300 * moment_block + 100;

// Parts as of matrices that are updated apart: they begin at any block, within pieces and across their ends, and end within a block.
struct Part {
  std::uint32_t first_block, size;
  double learning_rate;
};
constexpr std::array<Part, 3> parts_apart{{{0, 3 * moment_block, 1e-2}, {3, 130 * moment_block + 17, 2e-2}, {140, 160 * moment_block + 100, 3e-2}}};

std::vector<MomentsOptions> all_options() {
  std::vector<MomentsOptions> all;
  for (const MomentKind kind : {MomentKind::f32, MomentKind::eight_bit}) {
    all.push_back({.kind = kind, .piece_blocks = 64});
    all.push_back({.kind = kind, .place = MemoryPlace::host, .piece_blocks = 64});
    all.push_back({.kind = kind, .place = MemoryPlace::host, .piece_blocks = 64, .record_copies = false});
  }
  return all;
}

std::string text_of(const MomentsOptions& options) {
  return fmt::format("{}, {}{}", name_of(options.kind), options.place == MemoryPlace::device ? "device" : "host",
                     options.record_copies ? "" : " with copies that wait");
}

// Weights that learn, with their moments.
struct Learner {
  Tensor weights = test::upload(test::random_values(size, 1), {size}), gradients = device().tensor(DType::f32, {size}, "gradients");
  Moments moments;

  explicit Learner(const MomentsOptions& options) : moments(device(), size, options, "moments") {}

  void record_update(gpu::Recorder& recorder, std::uint64_t step, const Part& part, float norm = 2.0f) {
    const std::uint32_t first = part.first_block * moment_block;
    moments.update(recorder, {.weights = weights.part(first, {part.size}), .gradients = gradients.part(first, {part.size}),
                              .norm_and_factor = test::upload(std::vector<float>{norm, 0.5f}, {2}),
                              .rule = {.step = step, .learning_rate = part.learning_rate, .weight_decay = 0.1}, .first = first});
  }
  void take_weights(const Learner& from) {
    const auto values = test::download(from.weights);
    device().write(weights, std::as_bytes(std::span(values)));
  }
  void set_gradients(std::uint64_t step) {
    const auto values = test::random_values(size, 100 + step, 1e-2f);
    device().write(gradients, std::as_bytes(std::span(values)));
  }
  void update(std::uint64_t step) {
    set_gradients(step);
    gpu::Recorder recorder(device());
    for (const Part& part : parts_apart) record_update(recorder, step, part);
    recorder.submit();
  }
};

void expect_same_bytes(const Learner& a, const Learner& b) {
  EXPECT_TRUE(test::download(a.weights) == test::download(b.weights));
  for (const Which which : {Which::first, Which::second}) EXPECT_TRUE(a.moments.values(which) == b.moments.values(which));
}

TEST(Moments, BeginAtZeroAndTakeTheBytesThatTheySay) {
  for (const MomentsOptions& options : all_options()) {
    SCOPED_TRACE(text_of(options));
    const gpu::MemoryUse before = device().memory();
    const Moments moments(device(), size, options, "moments");
    const auto planned = Moments::bytes(device().info(), size, options);
    EXPECT_EQ(device().memory().current - before.current, planned.device);
    EXPECT_EQ(planned.host > 0, options.place == MemoryPlace::host);
    if (options.record_copies) {
      EXPECT_EQ(device().memory().host - before.host, planned.host);
    }
    EXPECT_TRUE(moments.values(Which::first) == std::vector<float>(size));
    EXPECT_TRUE(moments.values(Which::second) == std::vector<float>(size));
  }
}

// Each part by a kernel of its own, with moments of its own.
TEST(Moments, PartsThatAreUpdatedApartAreArraysOfTheirOwn) {
  for (const MomentsOptions& options : all_options()) {
    SCOPED_TRACE(text_of(options));
    Learner learner(options);
    for (std::uint64_t step = 1; step <= 3; ++step) learner.update(step);
    const auto weights = test::download(learner.weights), start = test::random_values(size, 1);
    std::vector<float> expected = start;
    for (const Part& part : parts_apart) {
      const auto begin = static_cast<std::ptrdiff_t>(part.first_block * moment_block), end = begin + part.size;
      const Tensor own = test::upload(std::vector<float>(start.begin() + begin, start.begin() + end), {part.size});
      const auto zeros = [&] { return test::upload(std::vector<float>(part.size), {part.size}); };
      const Tensor m = zeros(), v = zeros(), maps = moment_maps(device());
      const Moments8Bit codes = make_moments_8bit(device(), part.size);
      for (std::uint64_t step = 1; step <= 3; ++step) {
        const auto all = test::random_values(size, 100 + step, 1e-2f);
        const Tensor g = test::upload(std::vector<float>(all.begin() + begin, all.begin() + end), {part.size});
        const Tensor clip = test::upload(std::vector<float>{2.0f, 0.5f}, {2});
        const AdamWRule rule{.step = step, .learning_rate = part.learning_rate, .weight_decay = 0.1};
        if (options.kind == MomentKind::f32) {
          test::run(AdamW{.weights = own, .gradients = g, .first_moment = m, .second_moment = v, .norm_and_factor = clip, .rule = rule});
        } else {
          test::run(AdamW8Bit{.weights = own, .gradients = g, .moments = codes, .maps = maps, .norm_and_factor = clip, .rule = rule});
        }
      }
      const auto after = test::download(own);
      std::copy(after.begin(), after.end(), expected.begin() + begin);
    }
    EXPECT_TRUE(weights == expected);
  }
}

TEST(Moments, HostAndDeviceGiveTheSameBytes) {
  const auto all = all_options();
  for (std::size_t i = 0; i < all.size(); i += 3) {
    Learner on_device(all[i]);
    for (std::uint64_t step = 1; step <= 4; ++step) on_device.update(step);
    EXPECT_NE(on_device.moments.values(Which::first), std::vector<float>(size));
    for (const MomentsOptions& options : {all[i + 1], all[i + 2]}) {
      SCOPED_TRACE(text_of(options));
      Learner on_host(options);
      for (std::uint64_t step = 1; step <= 4; ++step) on_host.update(step);
      expect_same_bytes(on_device, on_host);
    }
  }
}

// Nothing waits where copies are recorded: several updates are one submission.
TEST(Moments, UpdatesOnTheHostAreRecorded) {
  if (test::must_skip(gpu::has_host_tensors(device().info()))) GTEST_SKIP() << "This adapter reaches no memory of the process.";
  for (const MomentKind kind : {MomentKind::f32, MomentKind::eight_bit}) {
    Learner on_device({.kind = kind}), on_host({.kind = kind, .place = MemoryPlace::host, .piece_blocks = 64});
    for (Learner* learner : {&on_device, &on_host}) {
      learner->set_gradients(1);
      gpu::Recorder recorder(device(), gpu::Pace::held);  // submits nothing by itself
      for (std::uint64_t step = 1; step <= 2; ++step) {
        for (const Part& part : parts_apart) learner->record_update(recorder, step, part);
      }
      EXPECT_TRUE(test::download(learner->weights) == test::random_values(size, 1));
      recorder.submit();
    }
    expect_same_bytes(on_device, on_host);
  }
}

TEST(Moments, ANormThatIsNotFiniteChangesNothing) {
  for (const MomentsOptions& options : all_options()) {
    SCOPED_TRACE(text_of(options));
    Learner learner(options), before(options);
    learner.update(1);
    before.update(1);
    gpu::Recorder recorder(device());
    for (const Part& part : parts_apart) learner.record_update(recorder, 2, part, INFINITY);
    recorder.submit();
    expect_same_bytes(learner, before);
  }
}

// Codes of every value under scales of many sizes, some blocks with a largest value below 0, which no entry of the map is alone.
TEST(Moments, ValuesOfEightBitsComeBackExactly) {
  Rng rng(1);
  for (const Which which : {Which::first, Which::second}) {
    const auto& map = which == Which::first ? dynamic_map() : unsigned_dynamic_map();
    for (int trial = 0; trial < 2000; ++trial) {
      const float absmax = rng.uniform(0.1f, 1.0f) * std::pow(10.0f, static_cast<float>(trial % 24) - 20);
      std::array<float, moment_block> values;
      // 254 is as large as 0 is, with the other sign.
      for (float& value : values) value = map[rng.below(trial % 3 == 0 ? 200 : 255)] * absmax;
      values[trial % moment_block] = map[trial % 2 == 0 && which == Which::first ? 0 : 255] * absmax;
      std::array<std::uint8_t, moment_block> codes;
      const float found = encode_moments(which, values, codes);
      std::size_t differing = 0;
      for (std::size_t i = 0; i < values.size(); ++i) differing += map[codes[i]] * found != values[i];
      EXPECT_EQ(differing, 0u) << trial << ": " << found << " for " << absmax;
      EXPECT_EQ(found, absmax) << trial;
    }
  }
}

// Others are rounded as the kernel does it.
TEST(Moments, ValuesOfMoreBitsAreRounded) {
  const auto values = test::random_values(moment_block, 3);
  std::array<std::uint8_t, moment_block> codes;
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  EXPECT_EQ(encode_moments(Which::first, values, codes), largest);
  for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(codes[i], nearest_code(dynamic_map(), values[i] / largest));
  const std::array<float, 3> squares{1.0f, 1e-9f, 0.0f};
  EXPECT_EQ(encode_moments(Which::second, squares, codes), 1.0f);
  EXPECT_EQ(codes[1], 1) << "above 0, so never the code of 0";
  EXPECT_EQ(codes[2], 0);
  EXPECT_EQ(encode_moments(Which::first, {}, {}), 0.0f);
}

TEST(Moments, GoOnFromValuesThatWereRead) {
  for (const MomentsOptions& options : all_options()) {
    SCOPED_TRACE(text_of(options));
    Learner whole(options), resumed(options);
    for (std::uint64_t step = 1; step <= 2; ++step) whole.update(step);
    resumed.take_weights(whole);
    for (const Which which : {Which::first, Which::second}) resumed.moments.set_values(which, whole.moments.values(which));
    expect_same_bytes(resumed, whole);
    whole.update(3);
    resumed.update(3);
    expect_same_bytes(resumed, whole);
  }
}

std::vector<MomentPart> named_parts() {
  std::vector<MomentPart> parts;
  for (const Part& part : parts_apart) {
    parts.push_back({.name = fmt::format("part{}", part.first_block), .first = part.first_block * moment_block, .size = part.size});
  }
  return parts;
}

// `change` sees each tensor's bytes before they are written.
void save(const std::filesystem::path& path, Moments& moments,
          const std::function<void(const std::string&, std::vector<std::byte>&)>& change = {}) {
  std::map<std::string, MomentTensor> tensors;
  std::vector<TensorSpec> specs;
  for (const MomentTensor& tensor : moments.tensors(named_parts())) {
    tensors[tensor.name] = tensor;
    specs.push_back(tensor.spec());
  }
  SafetensorsWriter writer(path, specs);
  for (const TensorSpec& spec : writer.tensors()) {
    std::vector<std::byte> bytes;
    moments.read(tensors.at(spec.name), [&](std::span<const std::byte> piece) { bytes.insert(bytes.end(), piece.begin(), piece.end()); });
    if (change) change(spec.name, bytes);
    writer.append(bytes);
  }
  writer.finish();
}

TEST(Moments, GoOnFromACheckpointInAnyPlace) {
  const test::TemporaryFolder folder;
  const auto all = all_options();
  for (std::size_t i = 0; i < all.size(); ++i) {
    const MomentsOptions& elsewhere = all[i / 3 * 3 + (i + 1) % 3];
    SCOPED_TRACE(text_of(all[i]) + ", then " + text_of(elsewhere));
    Learner whole(all[i]), resumed(elsewhere);
    for (std::uint64_t step = 1; step <= 2; ++step) whole.update(step);
    save(folder / "moments.safetensors", whole.moments);
    resumed.take_weights(whole);
    resumed.moments.load(SafetensorsFile(folder / "moments.safetensors"), named_parts());
    expect_same_bytes(resumed, whole);
    whole.update(3);
    resumed.update(3);
    expect_same_bytes(resumed, whole);
  }
}

// Elements behind a part's last one, which an update of everything takes along, stay zero.
TEST(Moments, GapsBetweenPartsStayZero) {
  const test::TemporaryFolder folder;
  for (const MomentKind kind : {MomentKind::f32, MomentKind::eight_bit}) {
    Learner whole({.kind = kind}), resumed({.kind = kind});
    whole.update(1);
    save(folder / "moments.safetensors", whole.moments);
    resumed.moments.load(SafetensorsFile(folder / "moments.safetensors"), named_parts());
    for (const Which which : {Which::first, Which::second}) {
      const auto values = resumed.moments.values(which);
      const std::size_t gap = 3 * moment_block + 130 * moment_block + 17;
      EXPECT_NE(values[gap - 1], 0.0f);
      for (std::size_t i = gap; i < 140 * moment_block; ++i) ASSERT_EQ(values[i], 0.0f) << i;
    }
  }
}

TEST(Moments, WhatIsNoCheckpointOfThemIsRefused) {
  const test::TemporaryFolder folder;
  const auto path = folder / "moments.safetensors";
  for (const MomentKind kind : {MomentKind::f32, MomentKind::eight_bit}) {
    SCOPED_TRACE(name_of(kind));
    Learner learner({.kind = kind}), other({.kind = kind == MomentKind::f32 ? MomentKind::eight_bit : MomentKind::f32});
    learner.update(1);
    other.update(1);
    const auto before = learner.moments.values(Which::first);
    const auto refuses = [&](const auto&... parts) {
      expect_error<DataError>([&] { learner.moments.load(SafetensorsFile(path), named_parts()); }, "moments.safetensors", parts...);
      EXPECT_TRUE(learner.moments.values(Which::first) == before);
    };
    save(path, other.moments);
    refuses("exp_avg.part0", kind == MomentKind::f32 ? "U8" : "F32");
    const std::string last = kind == MomentKind::f32 ? "exp_avg_sq.part140" : "exp_avg_sq.part140.absmax";
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY, -1.0f}) {
      save(path, learner.moments, [&](const std::string& name, std::vector<std::byte>& bytes) {
        if (name == last) std::memcpy(bytes.data() + 8, &bad, sizeof bad);
      });
      refuses(last, fmt::format("{} at index 2", bad));
    }
    SafetensorsWriter(path, {}).finish();
    refuses("exp_avg.part0");
  }
}

TEST(Moments, WhatTheyAreAskedForIsChecked) {
  expect_error<UsageError>([] { Moments(device(), 0, {}, "moments"); }, "0");
  expect_error<UsageError>([] { Moments(device(), std::uint64_t{1} << 32, {}, "moments"); }, "4294967296");
  expect_error<UsageError>([] { moment_kind_of("16bit"); }, "16bit", "8bit");
  Learner learner({});
  gpu::Recorder recorder(device());
  EXPECT_THROW(learner.moments.update(recorder, {.weights = learner.weights, .gradients = learner.gradients, .norm_and_factor = {}, .rule = {}, .first = 1}), Error);
}

}  // namespace
}  // namespace nibble::moments_test
