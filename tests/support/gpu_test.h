#pragma once

#include "nibble/base/half.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/operand.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace nibble::test {

// The device that all tests of a program share; let go before static destructors run.
gpu::Device& device();

// Records and submits one operation; temporary tensors in `op` live long enough.
template <typename Op>
void run(const Op& op) {
  gpu::Recorder recorder(device());
  record(recorder, op);
  recorder.submit();
}

// Whether a test has to be skipped, as the adapter lacks what it is about. The software adapter that the set-up brings lacks
// nothing, so there this fails the test: continuous integration skips none.
bool must_skip(bool has);

// The product paths that the adapter has.
std::vector<ProductPath> product_paths();
std::string name_of(ProductPath path);

std::vector<float> random_values(std::size_t count, std::uint64_t seed, float amplitude = 1.0f);

Tensor upload(std::span<const float> values, std::initializer_list<std::uint32_t> dims, DType dtype = DType::f32);
Tensor upload_u32(std::span<const std::uint32_t> values);
// f32 and f16 tensors as floats.
std::vector<float> download(const Tensor& tensor);

// `values` (rows, columns) as an operand of the path; what the operand holds after rounding is what download gives.
Operand upload_operand(std::span<const float> values, std::uint32_t rows, std::uint32_t columns, ProductPath path);
std::vector<float> download(const Operand& operand);

// An output between guard words. Filled with a value that is no number, so that what a kernel leaves unwritten shows.
class GuardedTensor {
 public:
  GuardedTensor(DType dtype, std::initializer_list<std::uint32_t> dims);
  const Tensor& tensor() const { return inner_; }
  // Fails the test where a word around the tensor changed.
  void expect_guards_intact() const;

 private:
  Tensor whole_, inner_;
  std::uint64_t before_ = 0, after_ = 0;  // bytes
};

// A row-major matrix with so many columns as a tiled weight stores it (Weight::tile).
std::vector<float> in_tiles(std::span<const float> values, std::uint32_t columns, std::uint32_t tile);

// ||a - b|| / ||b||; NaN counts as infinite.
double relative_error(std::span<const float> a, std::span<const float> b);
double cosine(std::span<const float> a, std::span<const float> b);

// Central differences: (f(x + h e_i) - f(x - h e_i)) / 2h for each i of `indices`, in double.
std::vector<double> finite_differences(const std::function<double(const std::vector<double>&)>& f, std::vector<double> x,
                                       std::span<const std::size_t> indices, double h = 1e-4);

}  // namespace nibble::test
