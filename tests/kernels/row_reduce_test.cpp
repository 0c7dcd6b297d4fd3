#include "tests/support/gpu_test.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble::row_reduce_test {
namespace {

// A workgroup of each size, since an adapter uses only some of them: sums[lane] and maxima[lane] of the lanes' values.
constexpr std::string_view text = R"(
@group(0) @binding(1) var<storage, read> values: array<f32>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;
@group(0) @binding(3) var<storage, read_write> maxima: array<u32>;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32) {
  sums[lane] = row_sum(lane, values[lane]);
  maxima[lane] = row_max(lane, bitcast<u32>(abs(values[lane])));
}
)";

TEST(RowReduce, EverySizeOfWorkgroup) {
  for (const std::uint32_t lanes : {1u, 8u, 32u, 64u, 128u, 256u}) {
    const auto values = test::random_values(lanes, lanes);
    const auto kernel = test::device().kernel(std::to_string(lanes), "row_reduce", "main", [&] {
      const auto& library = detail::embedded_wgsl();
      return gpu::Prelude().constant("WORKGROUP", lanes).str() + std::string(library.at("lib/row_reduce")) + std::string(text);
    });
    const test::GuardedTensor sums(DType::f32, {lanes}), maxima(DType::f32, {lanes});
    gpu::Recorder recorder(test::device());
    const Tensor input = test::upload(values, {lanes});
    recorder.dispatch_bytes(kernel, std::vector{gpu::read(input), gpu::write(sums.tensor()), gpu::write(maxima.tensor())}, {},
                            {}, {});
    recorder.submit();
    sums.expect_guards_intact();
    const double sum = std::accumulate(values.begin(), values.end(), 0.0);
    float largest = 0;
    for (const float value : values) largest = std::max(largest, std::fabs(value));
    for (const float given : test::download(sums.tensor())) EXPECT_NEAR(given, sum, lanes * 6e-8) << lanes;
    for (const float given : test::download(maxima.tensor())) EXPECT_EQ(given, largest) << lanes;
  }
}

}  // namespace
}  // namespace nibble::row_reduce_test
