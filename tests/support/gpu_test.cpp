#include "tests/support/gpu_test.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

namespace nibble::test {
namespace {

std::unique_ptr<gpu::Device>& shared_device() {
  static std::unique_ptr<gpu::Device> instance;
  return instance;
}

class ReleaseDevice : public testing::Environment {
 public:
  void TearDown() override { shared_device().reset(); }
};

const auto* const release = testing::AddGlobalTestEnvironment(new ReleaseDevice);

constexpr std::uint32_t guard_word = 0x7fc0dead;  // a NaN as f32, and its halves are no numbers that tests use

}  // namespace

gpu::Device& device() {
  if (!shared_device()) shared_device() = std::make_unique<gpu::Device>();
  return *shared_device();
}

bool must_skip(bool has) {
  EXPECT_TRUE(has || device().info().type != gpu::AdapterType::software) << "The software adapter lacks what is tested.";
  return !has;
}

std::vector<ProductPath> product_paths() {
  std::vector<ProductPath> paths = {ProductPath::f32};
  if (device().info().f16) paths.push_back(ProductPath::f16);
  if (device().info().f16 && !device().info().matrix_configs.empty()) paths.push_back(ProductPath::matrix);
  return paths;
}

std::string name_of(ProductPath path) {
  switch (path) {
    case ProductPath::matrix: return "matrix";
    case ProductPath::f16: return "f16";
    case ProductPath::f32: return "f32";
  }
  return "?";
}

std::vector<float> random_values(std::size_t count, std::uint64_t seed, float amplitude) {
  Rng rng(seed);
  std::vector<float> values(count);
  for (float& value : values) value = rng.uniform(-amplitude, amplitude);
  return values;
}

Tensor upload(std::span<const float> values, std::initializer_list<std::uint32_t> dims, DType dtype) {
  if (dtype == DType::f32) return device().tensor(dtype, dims, values, "test input");
  std::vector<std::uint16_t> halves(values.size());
  std::transform(values.begin(), values.end(), halves.begin(), f32_to_f16);
  return device().tensor<std::uint16_t>(dtype, dims, halves, "test input");
}

Tensor upload_u32(std::span<const std::uint32_t> values) {
  return device().tensor(DType::u32, {static_cast<std::uint32_t>(values.size())}, values, "test input");
}

std::vector<float> download(const Tensor& tensor) {
  if (tensor.dtype() == DType::f32) return device().read<float>(tensor);
  const auto halves = device().read<std::uint16_t>(tensor);
  std::vector<float> values(halves.size());
  std::transform(halves.begin(), halves.end(), values.begin(), f16_to_f32);
  return values;
}

Operand upload_operand(std::span<const float> values, std::uint32_t rows, std::uint32_t columns, ProductPath path) {
  if (path == ProductPath::f32) return {upload(values, {rows, columns}), {}};
  std::vector<float> scaled(values.begin(), values.end()), scales(rows);
  for (std::uint32_t r = 0; r < rows; ++r) {
    const auto row = std::span(scaled).subspan(std::size_t{r} * columns, columns);
    float largest = 0;
    for (const float value : row) largest = std::max(largest, std::fabs(value));
    const float factor = top_of_f16(largest);
    for (float& value : row) value *= factor;
    scales[r] = largest == 0.0f ? 0.0f : 1.0f / factor;
  }
  return {upload(scaled, {rows, columns}, DType::f16), upload(scales, {rows})};
}

std::vector<float> download(const Operand& operand) {
  auto values = download(operand.data);
  if (!operand.scale) return values;
  const auto scales = download(operand.scale);
  const std::size_t columns = values.size() / scales.size();
  for (std::size_t i = 0; i < values.size(); ++i) values[i] *= scales[i / columns];
  return values;
}

GuardedTensor::GuardedTensor(DType dtype, std::initializer_list<std::uint32_t> dims) {
  std::uint64_t bytes = size_of(dtype);
  for (const std::uint32_t dim : dims) bytes *= dim;
  before_ = 1024;
  after_ = 1024;
  const auto words = static_cast<std::uint32_t>((before_ + bytes + 3 + after_) / 4);
  const std::vector<std::uint32_t> pattern(words, guard_word);
  whole_ = device().tensor<std::uint32_t>(DType::u32, {words}, pattern, "guarded");
  inner_ = Tensor(whole_.buffer(), before_, dtype, dims);
}

void GuardedTensor::expect_guards_intact() const {
  const auto words = device().read<std::uint32_t>(whole_);
  std::vector<std::uint8_t> bytes(words.size() * 4), pattern(bytes.size());
  std::memcpy(bytes.data(), words.data(), bytes.size());
  for (std::size_t i = 0; i < words.size(); ++i) std::memcpy(&pattern[4 * i], &guard_word, 4);
  const std::size_t end = before_ + inner_.bytes();
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(before_), pattern.begin()))
      << "a word before the output was overwritten";
  EXPECT_TRUE(std::equal(bytes.begin() + static_cast<std::ptrdiff_t>(end), bytes.end(),
                         pattern.begin() + static_cast<std::ptrdiff_t>(end)))
      << "a word after the output was overwritten";
}

std::vector<float> in_tiles(std::span<const float> values, std::uint32_t columns, std::uint32_t tile) {
  std::vector<float> result;
  for (std::size_t row = 0; row < values.size() / columns; row += tile) {
    for (std::size_t column = 0; column < columns; column += tile) {
      for (std::size_t i = 0; i < std::size_t{tile} * tile; ++i) {
        result.push_back(values[(row + i / tile) * columns + column + i % tile]);
      }
    }
  }
  return result;
}

double relative_error(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  const double error = std::sqrt(difference) / std::max(std::sqrt(norm), 1e-30);
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

double cosine(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double dot = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    dot += double{a[i]} * b[i];
    aa += double{a[i]} * a[i];
    bb += double{b[i]} * b[i];
  }
  return dot / std::sqrt(aa * bb);
}

std::vector<double> finite_differences(const std::function<double(const std::vector<double>&)>& f, std::vector<double> x,
                                       std::span<const std::size_t> indices, double h) {
  std::vector<double> slopes;
  for (const std::size_t i : indices) {
    const double centre = x[i];
    x[i] = centre + h;
    const double above = f(x);
    x[i] = centre - h;
    const double below = f(x);
    x[i] = centre;
    slopes.push_back((above - below) / (2 * h));
  }
  return slopes;
}

}  // namespace nibble::test
