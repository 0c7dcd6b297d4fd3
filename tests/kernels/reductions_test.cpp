#include "nibble/base/error.h"
#include "nibble/kernels/largest.h"
#include "nibble/kernels/nonfinite.h"
#include "nibble/kernels/sum.h"
#include "tests/support/gpu_test.h"

#include <cmath>
#include <cstring>
#include <numeric>

namespace nibble::reductions_test {
namespace {

TEST(Sum, OfLossesAndCountsIntoSlots) {
  for (const std::uint32_t size : {1u, 31u, 257u, 5000u, 70001u}) {
    auto losses = test::random_values(size, size, 2.0f);
    for (float& loss : losses) loss += 2.5f;
    std::vector<std::uint32_t> counts(size);
    for (std::uint32_t i = 0; i < size; ++i) counts[i] = i % 3;
    const test::GuardedTensor total(DType::f32, {4});
    const std::vector<float> zeros(4);
    test::device().write(total.tensor(), std::as_bytes(std::span(zeros)));
    const Tensor losses_tensor = test::upload(losses, {size}), counts_tensor = test::upload_u32(counts);
    test::run(Sum{.x = losses_tensor, .total = total.tensor(), .slot = 1});
    test::run(Sum{.x = counts_tensor, .total = total.tensor(), .slot = 2});
    test::run(Sum{.x = losses_tensor, .total = total.tensor(), .slot = 3});
    test::run(Sum{.x = losses_tensor, .total = total.tensor(), .slot = 3, .accumulate = true});
    total.expect_guards_intact();
    const auto values = test::download(total.tensor());
    const double loss = std::accumulate(losses.begin(), losses.end(), 0.0);
    std::uint32_t count = 0;
    std::memcpy(&count, &values[2], sizeof count);
    EXPECT_EQ(values[0], 0.0f);
    EXPECT_NEAR(values[1] / loss, 1.0, 1e-6);
    EXPECT_EQ(count, std::accumulate(counts.begin(), counts.end(), 0u));
    EXPECT_EQ(values[3], 2 * values[1]);
  }
}

TEST(Sum, SlotBeyondTheTotal) {
  gpu::Recorder recorder(test::device());
  const Tensor x = test::upload(std::vector<float>(4), {4});
  EXPECT_THROW(record(recorder, Sum{.x = x, .total = x, .slot = 4}), Error);
}

float largest_of(const Tensor& x, const test::GuardedTensor& largest, bool accumulate = false) {
  test::run(Largest{.x = x, .largest = largest.tensor(), .accumulate = accumulate});
  largest.expect_guards_intact();
  return test::download(largest.tensor())[0];
}

TEST(Largest, MagnitudeAtOddSizes) {
  const test::GuardedTensor largest(DType::f32, {1});
  for (const std::uint32_t size : {1u, 63u, 1025u, 5000u}) {
    auto values = test::random_values(size, size);
    values[size - 1] = -3.5f;
    EXPECT_EQ(largest_of(test::upload(values, {size}), largest), 3.5f);
  }
  const Tensor small = test::upload(std::vector<float>{-1, 0.5f}, {2});
  EXPECT_EQ(largest_of(small, largest, true), 3.5f);
  EXPECT_EQ(largest_of(small, largest), 1.0f);
  EXPECT_EQ(largest_of(test::upload(std::vector<float>(7), {7}), largest), 0.0f);
  EXPECT_TRUE(std::isnan(largest_of(test::upload(std::vector<float>{INFINITY, NAN, 2}, {3}), largest)));
}

std::uint32_t first_nonfinite(const Tensor& x) {
  const test::GuardedTensor index(DType::u32, {1});
  test::run(NonFinite{.x = x, .index = index.tensor()});
  index.expect_guards_intact();
  return test::device().read<std::uint32_t>(index.tensor())[0];
}

TEST(NonFinite, SmallestIndex) {
  for (const std::uint32_t size : {1u, 1023u, 1025u, 5000u}) {
    auto values = test::random_values(size, 1, 1e38f);
    EXPECT_EQ(first_nonfinite(test::upload(values, {size})), UINT32_MAX);
    values[size - 1] = NAN;
    EXPECT_EQ(first_nonfinite(test::upload(values, {size})), size - 1);
    values[size / 2] = -INFINITY;
    EXPECT_EQ(first_nonfinite(test::upload(values, {1, size})), size / 2);
  }
}

TEST(NonFinite, MoreThanOneBinding) {
  const std::uint32_t rows = 34000, columns = 1024;
  const auto x = test::device().tensor(DType::f32, {rows, columns}, "x");
  const std::vector<float> bad(columns, INFINITY);
  test::device().write(x.rows(rows - 1, rows), std::as_bytes(std::span(bad)));
  EXPECT_EQ(first_nonfinite(x), (rows - 1) * columns);
}

}  // namespace
}  // namespace nibble::reductions_test
