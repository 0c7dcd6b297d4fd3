#include "nibble/weights/merge.h"

#include <sys/resource.h>

#include <cmath>
#include <csignal>

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/base/rng.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/model_folder.h"
#include "tests/support/files.h"

namespace nibble::merge_test {
namespace {

using test::expect_error;

using test::tiny;
const fs::path adapter_nonzero = test::source_path("tests/golden/tiny/adapter_nonzero");

std::vector<float> normals(std::size_t count, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(count);
  for (float& value : values) value = rng.normal();
  return values;
}

std::vector<float> through_nf4(const std::vector<float>& values) {
  std::vector<std::uint8_t> packed(nf4_packed_bytes(values.size()));
  std::vector<float> absmax(nf4_blocks(values.size())), result(values.size());
  nf4_quantize(DType::f32, std::as_bytes(std::span(values)), packed, absmax, {.threads = 1, .simd = Simd::scalar});
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto code = i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15;
    result[i] = nf4_codes[static_cast<std::size_t>(code)] * absmax[i / nf4_block];
  }
  return result;
}

// W + scaling * B A in f64, and for each value how far f32 may be from it: each of the rank products and sums, the
// scaling and the last sum round once, each by at most 2^-24 of the sum of the magnitudes.
struct Reference {
  std::vector<double> value, bound;
};
Reference reference(const std::vector<float>& w, std::size_t columns, const LoraMatrices* lora, double scaling) {
  Reference result{.value = {w.begin(), w.end()}, .bound = std::vector<double>(w.size())};
  if (lora == nullptr) return result;
  const std::size_t rank = lora->a.size() / columns;
  for (std::size_t i = 0; i < w.size(); ++i) {
    double sum = 0, magnitude = std::abs(w[i]);
    for (std::size_t k = 0; k < rank; ++k) {
      const double product = double{lora->b[i / columns * rank + k]} * lora->a[k * columns + i % columns];
      sum += product;
      magnitude += scaling * std::abs(product);
    }
    result.value[i] += scaling * sum;
    result.bound[i] = static_cast<double>(2 * rank + 2) * 0x1p-24 * magnitude;
  }
  return result;
}

void expect_near(const std::vector<float>& found, const Reference& expected) {
  ASSERT_EQ(found.size(), expected.value.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    ASSERT_LE(std::abs(found[i] - expected.value[i]), expected.bound[i]) << "at " << i;
  }
}

// A checkpoint with one matrix, in a type of its own.
class OneMatrix {
 public:
  OneMatrix(std::size_t rows, std::size_t columns, std::uint64_t seed = 1) : values_(normals(rows * columns, seed)) {
    const auto path = folder_ / "model.safetensors";
    SafetensorsWriter writer(
        path, {{"w", DType::f32, {static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns)}}});
    writer.append(std::as_bytes(std::span(values_)));
    writer.finish();
    checkpoint_.emplace(folder_.path());
  }

  const std::vector<float>& values() const { return values_; }
  MergeMatrix matrix() const { return {.base = checkpoint_->at("w")}; }

 private:
  test::TemporaryFolder folder_;
  std::vector<float> values_;
  std::optional<Checkpoint> checkpoint_;
};

std::vector<float> merged(const MergeMatrix& matrix, MergeNorms* norms = nullptr) {
  std::vector<std::byte> bytes;
  const auto found = merge_matrix(matrix, [&](auto piece) { bytes.insert(bytes.end(), piece.begin(), piece.end()); });
  if (norms != nullptr) *norms = found;
  std::vector<float> values(bytes.size() / size_of(matrix.dtype));
  convert_to_f32(matrix.dtype, bytes, values);
  return values;
}

TEST(MergeMatrix, IsTheSumInSeveralPiecesOfAnOddShape) {
  constexpr std::size_t rows = 4099, columns = 1031, rank = 3;  // more than one piece of 2^22 values
  const OneMatrix base(rows, columns);
  const LoraMatrices lora{.a = normals(rank * columns, 2), .b = normals(rows * rank, 3)};
  auto matrix = base.matrix();
  matrix.terms = {{&lora, 0.75}};
  MergeNorms norms;
  expect_near(merged(matrix, &norms), reference(base.values(), columns, &lora, 0.75));
  const auto rounded = through_nf4(base.values());
  double weights = 0, error = 0;
  for (std::size_t i = 0; i < rounded.size(); ++i) {
    weights += double{base.values()[i]} * base.values()[i];
    error += std::pow(double{rounded[i]} - base.values()[i], 2);
  }
  // Two orders of the same sum of as many squares.
  EXPECT_NEAR(norms.weights / weights, 1, rows * columns * 0x1p-53);
  EXPECT_NEAR(norms.nf4_error / error, 1, rows * columns * 0x1p-53);
  EXPECT_GT(norms.update, 0);
  matrix.through_nf4 = true;
  expect_near(merged(matrix), reference(rounded, columns, &lora, 0.75));
  matrix.terms.clear();
  EXPECT_EQ(merged(matrix), rounded);
}

TEST(MergeMatrix, RoundsToNearestEven) {
  const OneMatrix base(3, 70);
  auto matrix = base.matrix();
  for (const auto dtype : {DType::bf16, DType::f16}) {
    matrix.dtype = dtype;
    const auto found = merged(matrix);
    for (std::size_t i = 0; i < found.size(); ++i) {
      const float value = base.values()[i];
      EXPECT_EQ(found[i], dtype == DType::f16 ? f16_to_f32(f32_to_f16(value)) : bf16_to_f32(f32_to_bf16(value)));
    }
  }
}

TEST(MergeMatrix, NamesWhatLeavesTheType) {
  const OneMatrix base(100, 4);
  LoraMatrices lora{.a = {0, 0, 1, 0}, .b = std::vector<float>(100)};
  auto matrix = base.matrix();
  matrix.terms = {{&lora, 2}};
  matrix.dtype = DType::f16;
  lora.b[77] = 40'000;
  expect_error<DataError>([&] { merged(matrix); }, "[w]", "at index 310", "range of f16");
  matrix.dtype = DType::bf16;
  EXPECT_NEAR(merged(matrix)[310], 80'000, 256);
  matrix.terms = {{&lora, 1e38}};
  expect_error<DataError>([&] { merged(matrix); }, "[w]", "at index 310", "range of bf16");
  matrix.dtype = DType::f32;
  expect_error<DataError>([&] { merged(matrix); }, "[w]", "at index 310", "range of f32");
}

// Every tensor of a merged folder against the sum computed slowly.
void expect_merged(const fs::path& folder, const fs::path& model, MergeBase onto) {
  const auto config = read_model_config(model);
  const auto adapter = load_lora_adapter(adapter_nonzero, config);
  const Checkpoint base(model), found(folder);
  std::map<std::string, std::pair<std::uint32_t, Projection>> projections;
  for (std::uint32_t layer = 0; layer < config.num_layers; ++layer) {
    for (const Projection p : all_projections) projections[projection_tensor_name(layer, p)] = {layer, p};
  }
  ASSERT_EQ(found.tensors().size(), base.tensors().size());
  for (const auto& [name, entry] : base.tensors()) {
    ASSERT_TRUE(found.has(name)) << name;
    EXPECT_EQ(found.at(name).tensor->shape, entry.tensor->shape) << name;
    auto values = base.read_as_f32(name);
    const auto at = projections.find(name);
    const auto* lora = at == projections.end() ? nullptr : &adapter.at(at->second.first, at->second.second);
    if (lora != nullptr && onto == MergeBase::nf4) values = through_nf4(values);
    SCOPED_TRACE(name);
    expect_near(found.read_as_f32(name), reference(values, static_cast<std::size_t>(entry.tensor->shape.back()), lora,
                                                   adapter.config.scaling()));
  }
}

TEST(Merge, AddsTheAdapterToEitherBase) {
  const test::TemporaryFolder folder;
  for (const auto onto : {MergeBase::original, MergeBase::nf4}) {
    double last = 0;
    const auto result = merge({.model = tiny,
                               .output = folder / "new/m",
                               .adapters = {{adapter_nonzero}},
                               .dtype = DType::f32,
                               .onto = onto,
                               .overwrite = true,
                               .progress = [&](double done) { last = done; }});
    EXPECT_EQ(result.saved.files, 1);
    EXPECT_EQ(last, 1);
    EXPECT_GT(result.norms.update, 0);
    expect_merged(folder / "new/m", tiny, onto);
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "new"), {}), 1) << "something was left beside the folder";
}

// Linear in the updates: one of 7 projections in all layers, one with ranks and alphas by module in two layers.
TEST(Merge, AddsSeveralAdaptersWithWeights) {
  const test::TemporaryFolder folder;
  const fs::path patterns = test::source_path("tests/golden/patterns/adapter_nonzero");
  merge({.model = tiny, .output = folder / "m", .adapters = {{adapter_nonzero, 0.7}, {patterns, -0.3}}, .dtype = DType::f32});
  const auto config = read_model_config(tiny);
  const auto first = load_lora_adapter(adapter_nonzero, config), second = load_lora_adapter(patterns, config);
  const Checkpoint base(tiny), found(folder / "m");
  for (std::uint32_t layer = 0; layer < config.num_layers; ++layer) {
    for (const Projection p : all_projections) {
      const std::string name = projection_tensor_name(layer, p);
      SCOPED_TRACE(name);
      const auto columns = static_cast<std::size_t>(base.at(name).tensor->shape[1]);
      auto expected = reference(base.read_as_f32(name), columns, &first.at(layer, p), 0.7 * first.config.scaling());
      const LoraModule module = second.modules()[layer][static_cast<std::size_t>(p)];
      if (module.used()) {
        const auto other = reference(std::vector<float>(expected.value.size()), columns, &second.at(layer, p), std::abs(0.3 * module.scaling));
        for (std::size_t i = 0; i < other.value.size(); ++i) {
          expected.value[i] -= other.value[i];
          expected.bound[i] += other.bound[i] + 2 * 0x1p-24 * std::abs(other.value[i]);  // the sum of both rounds once more
        }
      }
      expect_near(found.read_as_f32(name), expected);
    }
  }
  // The same twice is the double; with the weight 0 nothing is added.
  merge({.model = tiny, .output = folder / "twice", .adapters = {{adapter_nonzero}, {adapter_nonzero, 1.0}}, .dtype = DType::f32});
  merge({.model = tiny, .output = folder / "double", .adapters = {{adapter_nonzero, 2}}, .dtype = DType::f32});
  EXPECT_TRUE(test::slurp(folder / "twice/model.safetensors") == test::slurp(folder / "double/model.safetensors"));
  merge({.model = tiny, .output = folder / "none", .adapters = {{adapter_nonzero, 0}}});
  EXPECT_TRUE(test::slurp(folder / "none/model.safetensors") == test::slurp(tiny / "model.safetensors"));
  expect_error<UsageError>([&] { merge({.model = tiny, .output = folder / "x", .adapters = {{adapter_nonzero, std::nan("")}}}); }, "finite");
  expect_error<UsageError>([&] { merge({.model = tiny, .output = adapter_nonzero, .adapters = {{patterns}, {adapter_nonzero}}}); }, "take the place");
}

// Of layer 0, whose projections the golden file has as bitsandbytes restores them.
TEST(Merge, RestoresABaseThatBitsandbytesHasQuantised) {
  const fs::path golden = test::source_path("tests/golden/bnb"), model = golden / "model";
  const test::TemporaryFolder folder;
  const auto result = merge({.model = model, .output = folder / "m", .adapters = {{golden / "adapter_nonzero"}}, .dtype = DType::f32});
  merge({.model = model, .output = folder / "alone", .dtype = DType::f32});
  EXPECT_GT(result.norms.update, 0);
  EXPECT_EQ(result.norms.nf4_error, 0);
  const SafetensorsFile restored(golden / "golden.safetensors");
  const auto config = read_model_config(model);
  const auto adapter = load_lora_adapter(golden / "adapter_nonzero", config);
  const Checkpoint found(folder / "m"), alone(folder / "alone");
  EXPECT_EQ(found.tensors().size(), base_tensors(config).size());
  EXPECT_EQ(found.read_as_f32("model.norm.weight"), Checkpoint(model).read_as_f32("model.norm.weight"));
  for (const Projection p : all_projections) {
    const std::string name = projection_tensor_name(0, p);
    SCOPED_TRACE(name);
    const auto& info = restored.at("dequantized." + name.substr(0, name.size() - std::string_view(".weight").size()));
    const auto values = restored.read_as_f32(info);
    EXPECT_EQ(alone.read_as_f32(name), values);
    expect_near(found.read_as_f32(name), reference(values, static_cast<std::size_t>(info.shape[1]), &adapter.at(0, p), adapter.config.scaling()));
  }
  EXPECT_FALSE(read_json_file(folder / "m/config.json").contains("quantization_config"));
  merge({.model = model, .output = folder / "half", .onto = MergeBase::nf4});
  EXPECT_EQ(Checkpoint(folder / "half").at(projection_tensor_name(1, Projection::q)).tensor->dtype, DType::bf16);
}

TEST(Merge, WritesAFolderThatStandsAlone) {
  const test::TemporaryFolder folder;
  merge({.model = tiny, .output = folder / "m", .adapters = {{adapter_nonzero}}, .dtype = DType::f16});
  EXPECT_EQ(read_json_file(folder / "m/config.json")["dtype"], "float16");
  EXPECT_EQ(read_model_config(folder / "m").vocab_size, 4096);
  for (const auto* name :
       {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}) {
    EXPECT_EQ(test::slurp(folder / "m" / name), test::slurp(tiny / name)) << name;
  }
  EXPECT_FALSE(fs::exists(folder / "m/README.md")) << "the model's own card would be wrong here";
}

TEST(Merge, WithoutAnAdapterKeepsTheWeightsAndTheirType) {
  const test::TemporaryFolder folder;
  merge({.model = tiny, .output = folder / "m", .max_shard_bytes = 1'000'000});
  const Checkpoint base(tiny), found(folder / "m");
  EXPECT_EQ(read_json_file(folder / "m/config.json"), read_json_file(tiny / "config.json"));
  for (const auto& [name, entry] : base.tensors()) {
    EXPECT_EQ(found.at(name).tensor->dtype, DType::bf16);
    EXPECT_EQ(found.read_as_f32(name), base.read_as_f32(name)) << name;
  }
  EXPECT_TRUE(fs::exists(folder / "m/model.safetensors.index.json"));
}

// The tiny model with a head of its own.
fs::path untied_model(const test::TemporaryFolder& folder) {
  const auto path = folder / "untied";
  fs::create_directories(path);
  const Checkpoint base(tiny);
  std::vector<TensorSpec> tensors{{"lm_head.weight", DType::f32, {4096, 256}}};
  for (const auto& [name, entry] : base.tensors()) tensors.push_back({name, DType::f32, entry.tensor->shape});
  const auto head = normals(4096 * 256, 9);
  save_shards(path, tensors, 4'000'000, [&](const TensorSpec& tensor, SafetensorsWriter& writer) {
    writer.append(std::as_bytes(std::span(tensor.name == "lm_head.weight" ? head : base.read_as_f32(tensor.name))));
  });
  Json config = read_json_file(tiny / "config.json");
  config["tie_word_embeddings"] = false;
  config.erase("dtype");
  folder.write("untied/config.json", config.dump());
  return path;
}

TEST(Merge, KeepsAHeadOfItsOwn) {
  const test::TemporaryFolder folder;
  const auto model = untied_model(folder);
  merge({.model = model, .output = folder / "m", .adapters = {{adapter_nonzero}}, .onto = MergeBase::nf4});
  expect_merged(folder / "m", model, MergeBase::nf4);
  EXPECT_TRUE(Checkpoint(folder / "m").has("lm_head.weight"));
  EXPECT_FALSE(read_model_config(folder / "m").tie_word_embeddings);
  merge({.model = model, .output = folder / "half", .dtype = DType::bf16});
  EXPECT_EQ(read_json_file(folder / "half/config.json")["torch_dtype"], "bfloat16");
}

// The tiny model's adapter with a head that was trained.
fs::path adapter_with_head(const test::TemporaryFolder& folder, const std::vector<float>& head) {
  auto adapter = load_lora_adapter(adapter_nonzero, read_model_config(tiny));
  adapter.config.saves_head = true;
  adapter.head = MatrixSource{.rows = 4096, .columns = 256, .read = [&](const PieceSink& sink) { sink(head, 0); }};
  save_lora_adapter(folder / "adapter", adapter);
  return folder / "adapter";
}

TEST(Merge, UntiesATrainedHead) {
  const test::TemporaryFolder folder;
  auto head = normals(4096 * 256, 5);
  const auto adapter = adapter_with_head(folder, head);
  const auto untied = untied_model(folder);
  for (const auto& model : {tiny, untied}) {
    merge({.model = model, .output = folder / "m", .adapters = {{adapter}}, .dtype = DType::f32, .overwrite = true});
    EXPECT_FALSE(read_model_config(folder / "m").tie_word_embeddings);
    const Checkpoint found(folder / "m");
    EXPECT_EQ(found.read_as_f32("lm_head.weight"), head);
    EXPECT_EQ(found.read_as_f32("model.embed_tokens.weight"),
              Checkpoint(tiny).read_as_f32("model.embed_tokens.weight"));
  }
  merge({.model = tiny, .output = folder / "half", .adapters = {{adapter}}});
  EXPECT_EQ(Checkpoint(folder / "half").at("lm_head.weight").tensor->dtype, DType::bf16);
  head[1234] = 1e6f;
  adapter_with_head(folder, head);
  expect_error<DataError>(
      [&] { merge({.model = tiny, .output = folder / "n", .adapters = {{adapter}}, .dtype = DType::f16}); },
      "[lm_head.weight]", "at index 1234", "range of f16");
  EXPECT_FALSE(fs::exists(folder / "n"));
}

TEST(Merge, TakesNoFolderThatIsInUse) {
  const test::TemporaryFolder folder;
  const auto model = folder / "models/base";
  fs::create_directories(folder / "models");
  fs::copy(tiny, model);
  const auto refuse = [&](const fs::path& output, bool overwrite, const std::string& part) {
    expect_error<UsageError>(
        [&] { merge({.model = model, .output = output, .adapters = {{adapter_nonzero}}, .overwrite = overwrite}); }, part);
    EXPECT_TRUE(fs::exists(model / "model.safetensors"));
  };
  refuse(model, true, "which is read");
  refuse(folder / "models/x/../base/", true, "which is read");
  refuse(folder / "models", true, "which is read");
  fs::create_directory_symlink(folder / "models", folder / "link");
  refuse(folder / "link/base", true, "which is read");
  folder.write("taken", "x");
  refuse(folder / "taken", true, "a file");
  fs::create_directory(folder / "full");
  folder.write("full/x", "x");
  refuse(folder / "full", false, "not empty");
  refuse(folder / "full", true, "would remove x too");
  EXPECT_TRUE(fs::exists(folder / "full/x"));
  fs::rename(folder / "full/x", folder / "full/README.md");
  refuse(folder / "full", true, "would remove README.md too");
  fs::rename(folder / "full/README.md", folder / "full/old.safetensors");
  merge({.model = model, .output = folder / "full", .overwrite = true});
  EXPECT_FALSE(fs::exists(folder / "full/old.safetensors"));
}

TEST(Merge, NamesTheOutputThatHasNoRoom) {
  const test::TemporaryFolder folder;
  expect_error<DataError>([&] { check_disk_room(folder.path(), UINT64_MAX, folder / "merged"); }, "[" + (folder / "merged").string() + "]",
                          "take 18446744073709551615 bytes", "has room for");
  check_disk_room(folder.path(), 1, folder / "merged");
}

TEST(Merge, ThatFailsLeavesTheOldFolder) {
  const test::TemporaryFolder folder;
  fs::create_directory(folder / "m");
  folder.write("m/old.safetensors", "x");
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{.rlim_cur = 3'000'000,
                     .rlim_max = before.rlim_max};  // a file that grows beyond it cannot be written
  ::setrlimit(RLIMIT_FSIZE, &small);
  expect_error<DataError>([&] { merge({.model = tiny, .output = folder / "m", .overwrite = true}); },
                          "write this file");
  ::setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
  EXPECT_TRUE(fs::exists(folder / "m/old.safetensors"));
}

}  // namespace
}  // namespace nibble::merge_test
