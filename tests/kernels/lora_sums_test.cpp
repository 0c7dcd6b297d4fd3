#include "nibble/base/error.h"
#include "nibble/kernels/lora_matrix.h"
#include "tests/support/gpu_test.h"

#include <algorithm>
#include <array>

namespace nibble::lora_sums_test {
namespace {

const LoraGroupShape shape{.rank = 8, .inputs = 64, .outputs = {72}};
constexpr std::uint32_t rows = 130;

bool must_skip() { return test::must_skip(lora_matrix_fits(test::device(), shape)); }

LoraPack adapters() {
  const LoraMasters pair{.a = test::upload(test::random_values(std::size_t{shape.rank} * shape.inputs, 1, 0.3f), {shape.rank, shape.inputs}),
                         .b = test::upload(test::random_values(std::size_t{shape.rank} * shape.outputs[0], 2, 0.3f), {shape.outputs[0], shape.rank})};
  const LoraGroupMasters masters{.shape = shape, .projections = {pair}};
  LoraPack pack = make_lora_pack(test::device(), std::span(&masters, 1));
  test::run(pack);
  return pack;
}

Operand operand(std::uint32_t columns, std::uint64_t seed) {
  return test::upload_operand(test::random_values(std::size_t{rows} * columns, seed), rows, columns, ProductPath::f16);
}

// One group's, da and db in one buffer.
struct Gradients {
  Tensor all = test::upload(std::vector<float>(elements, 0.0f), {elements});
  Tensor a = all.part(0, {shape.rank, shape.inputs}), b = all.part(shape.rank * shape.inputs, {shape.outputs[0], shape.rank});
  static constexpr std::uint32_t elements = 8 * (64 + 72);
};

using Values = std::vector<std::vector<float>>;  // of each group

// The gradients of so many groups, each of another dy: before what waits is added up, and after.
std::array<Values, 2> gradients(std::uint32_t groups, std::uint64_t scratch_size, LoraSums* sums) {
  auto& device = test::device();
  const LoraPack pack = adapters();
  const Operand x = operand(shape.inputs, 3);
  const Tensor h = test::upload(test::random_values(std::size_t{rows} * shape.width(), 4), {rows, shape.width()}, DType::f16);
  const Tensor scratch = device.tensor(DType::f32, {static_cast<std::uint32_t>(scratch_size)}, "scratch");
  std::vector<Gradients> to(groups);
  gpu::Recorder recorder(device);
  for (std::uint32_t i = 0; i < groups; ++i) {
    const Tensor dh = device.tensor(DType::f16, {rows, shape.width()}, "dh");
    record(recorder, LoraBackwardMatrix{.group = pack.groups.front(), .x = x, .dy = operand(shape.all_outputs(), 5 + i), .h = h, .dh = dh,
                                        .da = {to[i].a}, .db = {to[i].b}, .scratch = scratch, .sums = sums});
  }
  std::array<Values, 2> values;
  for (Values& when : values) {
    recorder.submit();
    for (const Gradients& each : to) when.push_back(test::download(each.all));
    if (sums) sums->add_up(recorder);
  }
  return values;
}

auto waiting(const Values& values) {
  const auto is_zero = [](float value) { return value == 0; };
  return std::count_if(values.begin(), values.end(), [&](const auto& group) { return std::all_of(group.begin(), group.end(), is_zero); });
}

// The smallest that is not refused.
std::uint64_t least_scratch() {
  std::uint64_t size = lora_matrix_scratch(test::device(), shape, rows);
  for (;; size -= 64) {
    try {
      gradients(1, size - 64, nullptr);
    } catch (const Error&) {
      return size;
    }
  }
}

// Of up to four groups they wait where the scratch holds them; what comes next goes in their place.
TEST(LoraSums, OfSeveralGroupsAreThoseOfEach) {
  if (must_skip()) GTEST_SKIP() << "The adapter has no matrices.";
  const std::uint64_t least = least_scratch();
  for (const std::uint32_t groups : {4u, 5u}) {
    const Values alone = gradients(groups, least, nullptr)[0];
    ASSERT_EQ(waiting(alone), 0);
    for (const std::uint64_t size : {least, 2 * least, 16 * least}) {
      LoraSums sums;
      const auto [before, after] = gradients(groups, size, &sums);
      EXPECT_EQ(after, alone) << groups << " groups in " << size;
      EXPECT_LE(waiting(before), size == least ? 1 : groups) << groups << " groups in " << size;
      EXPECT_TRUE(size <= 2 * least || waiting(before) == (groups == 4 ? 4 : 1)) << groups << " groups in " << size;
    }
  }
}

TEST(LoraSums, OfAPassThatWasGivenUpAreForgotten) {
  if (must_skip()) GTEST_SKIP() << "The adapter has no matrices.";
  const std::uint64_t size = lora_matrix_scratch(test::device(), shape, rows);
  LoraSums sums;
  gpu::Recorder recorder(test::device());
  const Gradients to;
  const LoraPack pack = adapters();
  const Tensor h = test::upload(std::vector<float>(std::size_t{rows} * shape.width(), 1.0f), {rows, shape.width()}, DType::f16);
  record(recorder, LoraBackwardMatrix{.group = pack.groups.front(), .x = operand(shape.inputs, 3), .dy = operand(shape.all_outputs(), 5), .h = h,
                                      .dh = test::device().tensor(DType::f16, {rows, shape.width()}, "dh"), .da = {to.a}, .db = {to.b},
                                      .scratch = test::device().tensor(DType::f32, {static_cast<std::uint32_t>(size)}, "scratch"), .sums = &sums});
  sums.forget();
  sums.add_up(recorder);
  recorder.submit();
  EXPECT_EQ(waiting({test::download(to.all)}), 1);
}

}  // namespace
}  // namespace nibble::lora_sums_test
