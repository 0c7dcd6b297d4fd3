#include "nibble/base/error.h"
#include "nibble/gpu/cargo.h"
#include "nibble/gpu/host_memory.h"
#include "nibble/kernels/carry.h"
#include "nibble/kernels/nf4.h"
#include "nibble/kernels/product_matrix.h"
#include "tests/support/gpu_test.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <numeric>

namespace nibble::cargo_test {
namespace {

constexpr std::uint32_t words = 1 << 18, rows = 96, inputs = 256, outputs = 512;

// Products that carry, from host memory that says in each word where it stands.
class CarriedCargo : public testing::Test {
 protected:
  void SetUp() override {
    auto& device = test::device();
    if (test::must_skip(matrix_fits(device, 64, 64) && gpu::supports(device.info(), gpu::HostMemory::carried) &&
                        device.info().limits.storage_bindings >= 10)) {
      GTEST_SKIP() << "The adapter has no matrices, or its kernels do not read host memory.";
    }
    std::iota(values_.begin(), values_.end(), 1u);
    host_.emplace(device, gpu::HostMemory::carried, words * 4, "host");
    host_->write(std::as_bytes(std::span(values_)), 0);
    host_->seal();
    to_ = device.tensor(DType::u32, {words}, "to");
    x_ = {test::upload(test::random_values(std::size_t{rows} * inputs, 1), {rows, inputs}, DType::f16),
          test::upload(std::vector<float>(rows, 1.0f), {rows})};
    w_ = {.data = test::upload(test::random_values(std::size_t{outputs} * inputs, 2), {outputs, inputs}, DType::f16)};
  }

  std::vector<float> product(gpu::Recorder& recorder, std::optional<std::uint32_t> splits = {}) {
    const Tensor y = test::device().tensor(DType::f32, {rows, outputs}, "y");
    const Tensor scratch = test::device().tensor(DType::f32, {4 * 128 * 1024}, "scratch");
    record_matrix_nt(recorder, {.x = x_, .w = w_, .y = y, .scratch = scratch, .splits = splits});
    recorder.submit();
    return test::download(y);
  }

  std::vector<std::uint32_t> values_ = std::vector<std::uint32_t>(words);
  std::optional<gpu::HostBuffer> host_;
  Tensor to_;
  Operand x_;
  Weight w_;
};

TEST_F(CarriedCargo, ArrivesWholeAndLeavesProductsAsTheyAre) {
  auto& device = test::device();
  gpu::Recorder recorder(device);
  for (const std::optional<std::uint32_t> splits : {std::optional<std::uint32_t>(), std::optional(2u)}) {
    const auto alone = product(recorder, splits);
    const auto cargo = gpu::Cargo::make(device);
    for (int round = 0; round < 2; ++round) {
      SCOPED_TRACE(round);
      recorder.clear(to_);
      cargo->load(recorder, host_->tensor(), to_, 0);
      EXPECT_EQ(product(recorder, splits), alone);
      EXPECT_EQ(product(recorder, splits), alone);
      // From the second time on it is known how much is computed, and nothing is left but what makes no whole round.
      const auto arrived = device.read<std::uint32_t>(to_);
      const auto last = std::find(arrived.begin(), arrived.end(), 0u) - arrived.begin();
      EXPECT_TRUE(std::equal(arrived.begin(), arrived.begin() + last, values_.begin()));
      if (round == 1) {
        EXPECT_GT(last, words * 9 / 10);
      }
      cargo->finish(recorder);
      recorder.submit();
      EXPECT_EQ(device.read<std::uint32_t>(to_), values_);
    }
  }
}

// Every kernel that decodes NF4 on GPUs: into rows, into tiles of the weight and of its transpose. In the second round it adds up rows too.
TEST_F(CarriedCargo, ArrivesWithWeightsThatAreDecoded) {
  auto& device = test::device();
  gpu::Recorder recorder(device);
  const Nf4 w{.packed = test::upload_u32(std::vector<std::uint32_t>(std::size_t{outputs} * inputs / 8, 0x12345678u)),
              .absmax = test::upload(test::random_values(std::size_t{outputs} * inputs / 64, 3), {outputs * inputs / 64})};
  const std::uint32_t count = 40, width = 16;
  const Tensor h = device.tensor(DType::f16, {count, width}, "h");
  const LoraRowsSum sum{.partial = test::upload(std::vector<float>(3 * count * width, 0.5f), {3 * count, width}), .h = h, .starts = {0, 3, 3, 3},
                        .width = width, .padded_width = width, .padded_rows = count};
  const auto decode = [&](const Weight& form, const LoraRowsSum* rows_sum = nullptr) {
    Weight out = form;
    out.data = device.tensor(DType::f16, {outputs, inputs}, "decoded");
    record(recorder, DequantizeNf4{.w = w, .out = out, .tiles_for = gpu::AdapterType::discrete, .rows_sum = rows_sum});
    recorder.submit();
    return test::download(out.data);
  };
  constexpr std::uint32_t whole_round = 12 * 256 * carried_vectors * 4;  // words
  for (const Weight& form : {Weight{}, Weight{.tile = 16}, Weight{.tile = 16, .turned = true}}) {
    SCOPED_TRACE(fmt::format("tiles of {}{}", form.tile, form.turned ? ", turned" : ""));
    const auto alone = decode(form);
    const auto cargo = gpu::Cargo::make(device);
    for (int round = 0; round < 2; ++round) {
      recorder.clear(to_);
      cargo->load(recorder, host_->tensor(), to_, 0);
      recorder.clear(h);
      EXPECT_EQ(decode(form, round == 1 ? &sum : nullptr), alone);
      EXPECT_EQ(test::download(h), std::vector<float>(count * width, round == 1 ? 1.5f : 0.0f));
      const auto arrived = device.read<std::uint32_t>(to_);
      const auto last = std::find(arrived.begin(), arrived.end(), 0u) - arrived.begin();
      EXPECT_TRUE(std::equal(arrived.begin(), arrived.begin() + last, values_.begin()));
      if (round == 1) {
        EXPECT_EQ(last, words / whole_round * whole_round);
      }
      cargo->finish(recorder);
      recorder.submit();
      EXPECT_EQ(device.read<std::uint32_t>(to_), values_);
    }
  }
}

TEST_F(CarriedCargo, IsCopiedWhereNothingIsComputed) {
  auto& device = test::device();
  gpu::Recorder recorder(device);
  EXPECT_EQ(gpu::Cargo::waiting(device), nullptr);
  const auto cargo = gpu::Cargo::make(device);
  EXPECT_EQ(gpu::Cargo::waiting(device), nullptr);
  cargo->load(recorder, host_->tensor(), to_, 0);
  EXPECT_EQ(gpu::Cargo::waiting(device), cargo);
  cargo->finish(recorder);
  EXPECT_EQ(gpu::Cargo::waiting(device), nullptr);
  cargo->finish(recorder);
  recorder.submit();
  EXPECT_EQ(device.read<std::uint32_t>(to_), values_);
  EXPECT_THROW(cargo->load(recorder, host_->tensor(), device.tensor(DType::u32, {8}, "short"), 0), Error);
}

TEST_F(CarriedCargo, IsSharedByArithmetic) {
  gpu::Recorder recorder(test::device());
  const auto cargo = gpu::Cargo::make(test::device());
  const auto taken = [&](double flops) { return cargo->take(flops, 64).value_or(gpu::Cargo::Piece{}).words; };
  EXPECT_EQ(taken(1e9), 0u);
  cargo->load(recorder, host_->tensor(), to_, 0);
  EXPECT_EQ(taken(3e9), 150016u);  // 3e9 * 0.5e-4 words, in whole units
  taken(1e9);
  cargo->load(recorder, host_->tensor(), to_, 0);
  EXPECT_EQ(taken(1e9), words / 4);
  EXPECT_EQ(taken(3e9), words / 4 * 3);
  EXPECT_EQ(taken(1e9), 0u);
  // Another route is met by other kernels.
  cargo->load(recorder, host_->tensor(), to_, 1);
  EXPECT_EQ(taken(3e9), 150016u);
  cargo->load(recorder, host_->tensor(), to_, 0);
  EXPECT_EQ(taken(1e9), 52480u);  // a fifth, in whole units, as 5e9 came the last time
  cargo->load(recorder, host_->tensor(), to_, 1);
  EXPECT_EQ(taken(3e9), words);
}

}  // namespace
}  // namespace nibble::cargo_test
