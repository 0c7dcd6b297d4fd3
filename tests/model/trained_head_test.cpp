#include "nibble/model/trained_head.h"

#include "nibble/base/error.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <array>
#include <cmath>
#include <map>

namespace nibble::trained_head_test {
namespace {

using test::device;
using test::expect_error;

constexpr std::uint32_t vocab = 1001, hidden = 64, size = vocab * hidden;  // 250 blocks and a quarter

MatrixSource source_of_values(const std::vector<float>& values) {
  return {.rows = vocab, .columns = hidden, .read = [&values](const PieceSink& sink) { sink(values, 0); }};
}

std::vector<float> all_of(const MatrixSource& source) {
  std::vector<float> values;
  source.read([&](std::span<const float> piece, std::uint64_t) { values.insert(values.end(), piece.begin(), piece.end()); });
  return values;
}

// A head with what its product reads, in pieces small enough that there are several.
struct SmallHead {
  DenseMatrix product;
  TrainedHead head;

  explicit SmallHead(TrainedHeadOptions options, const std::vector<float>& values = test::random_values(size, 1, 0.1f))
      : head(device(), source_of_values(values), with_small_pieces(options), product) {}

  static TrainedHeadOptions with_small_pieces(TrainedHeadOptions options) {
    options.piece_blocks = 64;
    return options;
  }

  void update(std::uint64_t step, double learning_rate = 1e-2) {
    const auto gradients = test::random_values(size, 100 + step, 1e-2f);
    device().write(head.gradient(), std::as_bytes(std::span(gradients)));
    gpu::Recorder recorder(device());
    head.update(recorder, test::upload(std::vector<float>{2.0f, 0.5f}, {2}),
                {.step = step, .learning_rate = learning_rate, .weight_decay = 0.1});
    recorder.submit();
    head.settle();
  }
};

void expect_same_bytes(const SmallHead& a, const SmallHead& b) {
  EXPECT_TRUE(all_of(a.head.values()) == all_of(b.head.values()));
  EXPECT_TRUE(all_of(a.head.first_moment()) == all_of(b.head.first_moment()));
  EXPECT_TRUE(all_of(a.head.second_moment()) == all_of(b.head.second_moment()));
  EXPECT_EQ(a.product.scale, b.product.scale);
  EXPECT_TRUE(test::download(a.product.data) == test::download(b.product.data));
}

// Every way to keep a head.
std::vector<TrainedHeadOptions> all_options() {
  std::vector<TrainedHeadOptions> all;
  for (const ProductPath path : test::product_paths()) {
    if (path == ProductPath::matrix) continue;  // keeps it as f16 does
    for (const MomentKind moments : {MomentKind::f32, MomentKind::eight_bit}) {
      all.push_back({.path = path, .moments = moments});
      for (const bool record_copies : {true, false}) {
        all.push_back({.path = path, .moments = moments, .place = MemoryPlace::host, .record_copies = record_copies});
      }
    }
  }
  return all;
}

std::string name_of(const TrainedHeadOptions& options) {
  return fmt::format("{}, {}, {}", test::name_of(options.path), options.moments == MomentKind::f32 ? "f32" : "8bit",
                     options.place == MemoryPlace::device ? "device" : options.record_copies ? "host" : "host with copies that wait");
}

// The copy is the master times the power of two that suits it.
void expect_true_copy(const SmallHead& small) {
  const auto values = all_of(small.head.values()), copy = test::download(small.product.data);
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  const bool exact = small.product.data.dtype() == DType::f32;
  const float factor = exact ? 1.0f : top_of_f16(largest);
  EXPECT_EQ(small.product.scale, 1.0f / factor);
  std::size_t differing = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    differing += copy[i] != (exact ? values[i] : f16_to_f32(f32_to_f16(values[i] * factor)));
  }
  EXPECT_EQ(differing, 0u);
}

TEST(TrainedHead, BeginsAsItWasGiven) {
  const auto values = test::random_values(size, 1, 0.1f);
  for (const TrainedHeadOptions& options : all_options()) {
    SCOPED_TRACE(name_of(options));
    const SmallHead small(options);
    EXPECT_TRUE(all_of(small.head.values()) == values);
    EXPECT_TRUE(all_of(small.head.first_moment()) == std::vector<float>(size));
    expect_true_copy(small);
    EXPECT_EQ(small.head.parameter_count(), size);
  }
}

TEST(TrainedHead, HostAndDeviceGiveTheSameBytes) {
  const auto all = all_options();
  for (std::size_t i = 0; i < all.size(); i += 3) {
    SmallHead on_device(all[i]);
    for (std::uint64_t step = 1; step <= 3; ++step) on_device.update(step);
    for (const TrainedHeadOptions& options : {all[i + 1], all[i + 2]}) {
      SCOPED_TRACE(name_of(options));
      SmallHead on_host(options);
      for (std::uint64_t step = 1; step <= 3; ++step) on_host.update(step);
      expect_same_bytes(on_device, on_host);
      expect_true_copy(on_host);
    }
  }
}

TEST(TrainedHead, LearnsAsAdamW) {
  const auto values = test::random_values(size, 1, 0.1f);
  const Tensor weights = test::upload(values, {size}), first = test::upload(std::vector<float>(size), {size}),
               second = test::upload(std::vector<float>(size), {size});
  SmallHead small({});
  for (std::uint64_t step = 1; step <= 3; ++step) {
    small.update(step);
    test::run(AdamW{.weights = weights, .gradients = test::upload(test::random_values(size, 100 + step, 1e-2f), {size}),
                    .first_moment = first, .second_moment = second,
                    .norm_and_factor = test::upload(std::vector<float>{2.0f, 0.5f}, {2}),
                    .rule = {.step = step, .learning_rate = 1e-2, .weight_decay = 0.1}});
  }
  EXPECT_TRUE(all_of(small.head.values()) == test::download(weights));
  EXPECT_TRUE(all_of(small.head.second_moment()) == test::download(second));
}

TEST(TrainedHead, MomentsOfEightBitsLearnNearlyAlike) {
  SmallHead exact({}), rounded({.moments = MomentKind::eight_bit});
  for (std::uint64_t step = 1; step <= 5; ++step) {
    exact.update(step);
    rounded.update(step);
  }
  const auto before = test::random_values(size, 1, 0.1f), a = all_of(exact.head.values()), b = all_of(rounded.head.values());
  double distance = 0, way = 0;
  for (std::size_t i = 0; i < size; ++i) {
    distance += std::pow(double{a[i]} - b[i], 2);
    way += std::pow(double{a[i]} - before[i], 2);
  }
  EXPECT_LT(std::sqrt(distance / way), 0.05);
  EXPECT_GT(distance, 0.0);
}

// The largest magnitude passes powers of two, up and down.
TEST(TrainedHead, TheCopyFollowsTheMagnitude) {
  for (const TrainedHeadOptions& options : all_options()) {
    if (options.path == ProductPath::f32 || options.moments != MomentKind::f32) continue;
    SCOPED_TRACE(name_of(options));
    SmallHead small(options);
    const float scale = small.product.scale;
    small.update(1, 0.5);
    EXPECT_GT(small.product.scale, scale);
    expect_true_copy(small);
    small.update(2, 1e-4);
    expect_true_copy(small);
  }
}

void save_moments(const std::filesystem::path& path, TrainedHead& head) {
  const std::array parts{head.moment_part()};
  std::map<std::string, MomentTensor> tensors;
  std::vector<TensorSpec> specs;
  for (const MomentTensor& tensor : head.moments().tensors(parts)) {
    tensors[tensor.name] = tensor;
    specs.push_back(tensor.spec());
  }
  SafetensorsWriter writer(path, specs);
  for (const TensorSpec& spec : writer.tensors()) {
    head.moments().read(tensors.at(spec.name), [&](std::span<const std::byte> bytes) { writer.append(bytes); });
  }
  writer.finish();
}

void load_moments(const std::filesystem::path& path, TrainedHead& head) {
  head.moments().load(SafetensorsFile(path), std::array{head.moment_part()});
}

TEST(TrainedHead, GoesOnFromSavedMoments) {
  const test::TemporaryFolder folder;
  for (const TrainedHeadOptions& options : all_options()) {
    SCOPED_TRACE(name_of(options));
    SmallHead whole(options);
    for (std::uint64_t step = 1; step <= 2; ++step) whole.update(step);
    save_moments(folder / "moments.safetensors", whole.head);
    // What is saved on the device may go on on the host.
    TrainedHeadOptions elsewhere = options;
    elsewhere.place = options.place == MemoryPlace::device ? MemoryPlace::host : MemoryPlace::device;
    SmallHead resumed(elsewhere, all_of(whole.head.values()));
    load_moments(folder / "moments.safetensors", resumed.head);
    expect_same_bytes(resumed, whole);
    whole.update(3);
    resumed.update(3);
    expect_same_bytes(resumed, whole);
  }
}

TEST(TrainedHead, MomentsOfAnotherKindAreRefused) {
  const test::TemporaryFolder folder;
  SmallHead plain({}), other({.moments = MomentKind::eight_bit});
  save_moments(folder / "moments.safetensors", plain.head);
  expect_error<DataError>([&] { load_moments(folder / "moments.safetensors", other.head); }, "exp_avg.base_model.model.lm_head.weight",
                          "F32");
  save_moments(folder / "moments.safetensors", other.head);
  expect_error<DataError>([&] { load_moments(folder / "moments.safetensors", plain.head); }, "U8");
}

TEST(TrainedHead, TakesTheBytesThatItSays) {
  const ModelConfig config{.hidden_size = hidden, .vocab_size = vocab};
  for (const TrainedHeadOptions& options : all_options()) {
    SCOPED_TRACE(name_of(options));
    const gpu::MemoryUse before = device().memory();
    const SmallHead small(options);
    const auto planned = TrainedHead::bytes(device().info(), config, small.head.options());
    EXPECT_EQ(device().memory().current - before.current, planned.device);
    EXPECT_EQ(planned.host > 0, options.place == MemoryPlace::host);
    if (options.record_copies) {
      EXPECT_EQ(device().memory().host - before.host, planned.host);
    }
  }
  const auto bytes = TrainedHead::bytes(device().info(), {.hidden_size = 2560, .vocab_size = 151936},
                                        {.path = ProductPath::f16, .moments = MomentKind::eight_bit, .place = MemoryPlace::host,
                                         .record_copies = false});
  constexpr std::uint64_t parameters = 388'956'160, piece = 2 << 20;
  EXPECT_EQ(bytes.host, parameters * 6 + parameters / 256 * 8);
  EXPECT_EQ(bytes.device, parameters * 6 + piece * 4 + 2 * gpu::buffer_bytes(piece) + piece / 256 * 8 + 2048 + 256);
}

TEST(TrainedHead, ElementsAreNamedByTheirRow) {
  const SmallHead small({});
  EXPECT_EQ(small.head.describe_element(3 * hidden + 5), " in the gradient of lm_head, at entry 3 of the vocabulary");
  EXPECT_EQ(small.head.describe_element(size), "");
}

}  // namespace
}  // namespace nibble::trained_head_test
