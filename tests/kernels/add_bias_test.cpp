#include "nibble/kernels/add_bias.h"

#include "nibble/base/error.h"
#include "tests/support/guarded_operand.h"

namespace nibble::add_bias_test {
namespace {

TEST(AddBias, EqualsTheReference) {
  for (const ProductPath path : test::product_paths()) {
    for (const auto& [rows, columns, first] : {std::array{1u, 4u, 0u}, {5u, 24u, 8u}, {37u, 1032u, 260u}}) {
      SCOPED_TRACE(fmt::format("{} {}x{} from {}", test::name_of(path), rows, columns, first));
      const auto x = test::random_values(std::size_t{rows} * columns, 1, 3.0f), bias = test::random_values(first + columns + 4, 2, 400.0f);
      const Operand given = test::upload_operand(x, rows, columns, path);
      const auto held = test::download(given);
      const test::GuardedOperand y(path, rows, columns);
      {
        gpu::Recorder recorder(test::device());
        recorder.copy(given.data, y.operand().data);
        if (given.scale) recorder.copy(given.scale, y.operand().scale);
        record(recorder, AddBias{.y = y.operand(), .bias = test::upload(bias, {first + columns + 4}), .first = first});
        recorder.submit();
      }
      std::vector<double> expected;
      for (std::size_t i = 0; i < x.size(); ++i) expected.push_back(double{held[i]} + bias[first + i % columns]);
      y.expect_values(expected, 0x1p-22);
      y.expect_guards_intact();
    }
  }
}

TEST(AddBias, RefusesWhatDoesNotFit) {
  gpu::Recorder recorder(test::device());
  const Tensor y = test::upload(std::vector<float>(16), {2, 8}), bias = test::upload(std::vector<float>(12), {12});
  EXPECT_NO_THROW(record(recorder, AddBias{.y = {y, {}}, .bias = bias, .first = 4}));
  EXPECT_THROW(record(recorder, AddBias{.y = {y, {}}, .bias = bias, .first = 8}), Error);
  EXPECT_THROW(record(recorder, AddBias{.y = {y, {}}, .bias = bias, .first = 2}), Error);
  EXPECT_THROW(record(recorder, AddBias{.y = {y, {}}, .bias = {}}), Error);
}

}  // namespace
}  // namespace nibble::add_bias_test
