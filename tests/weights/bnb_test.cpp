#include "nibble/weights/bnb.h"

#include <algorithm>
#include <limits>

#include "nibble/base/error.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/checkpoint_check.h"
#include "tests/support/files.h"

namespace nibble::bnb_test {
namespace {

using test::expect_error;

constexpr const char* weight = "model.layers.0.self_attn.q_proj.weight";
constexpr const char* state_name = "model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4";
constexpr std::uint32_t out_features = 384, in_features = 256;

struct Tensor {
  DType dtype;
  Shape shape;
  std::string bytes;
};
using Tensors = std::map<std::string, Tensor>;

// The golden folder's query projection of layer 0 and what belongs to it.
Tensors golden_tensors() {
  const Checkpoint golden(test::source_path("tests/golden/bnb/model"));
  Tensors tensors;
  for (const auto& [name, entry] : golden.tensors()) {
    if (name != weight && !is_bnb_part(name, weight)) continue;
    Tensor tensor{*entry.tensor->dtype, entry.tensor->shape, std::string(entry.tensor->bytes, '\0')};
    golden.read(name, 0, std::as_writable_bytes(std::span(tensor.bytes)));
    tensors[name] = tensor;
  }
  return tensors;
}

void write(const std::filesystem::path& path, const Tensors& tensors) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) specs.push_back({name, tensor.dtype, tensor.shape});
  SafetensorsWriter writer(path, specs);
  for (const auto& spec : writer.tensors()) writer.append(std::as_bytes(std::span(tensors.at(spec.name).bytes)));
  writer.finish();
}

void replace_state(Tensors& tensors, const std::string& from, const std::string& to) {
  Tensor& state = tensors.at(state_name);
  ASSERT_NE(state.bytes.find(from), std::string::npos) << from;
  state.bytes.replace(state.bytes.find(from), from.size(), to);
  state.shape = {static_cast<std::int64_t>(state.bytes.size())};
}

std::vector<float> values_of(const BnbMatrix& matrix, std::size_t count) {
  std::vector<std::uint8_t> codes(nf4_packed_bytes(count));
  std::vector<float> absmax(nf4_blocks(count)), values(count);
  read_bnb(matrix, 0, codes, absmax);
  nf4_dequantize(codes, absmax, values, {.codes = matrix.book});
  return values;
}

template <typename T>
std::string as_text(std::span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

TEST(Bnb, DequantisesAsBitsandbytesBitForBit) {
  const Checkpoint model(test::source_path("tests/golden/bnb/model"));
  const SafetensorsFile golden(test::source_path("tests/golden/bnb/golden.safetensors"));
  int compared = 0;
  for (const auto& [unused, info] : golden.tensors()) {
    constexpr std::string_view prefix = "dequantized.";
    if (!info.name.starts_with(prefix)) continue;
    const auto matrix = bnb_matrix(model, info.name.substr(prefix.size()) + ".weight", static_cast<std::uint32_t>(info.shape[0]),
                                   static_cast<std::uint32_t>(info.shape[1]));
    ASSERT_TRUE(matrix) << info.name;
    EXPECT_EQ(values_of(*matrix, info.numel()), golden.read_as_f32(info)) << info.name;
    ++compared;
  }
  EXPECT_EQ(compared, 7);
}

TEST(Bnb, DequantisesFp4AsBitsandbytesBitForBit) {
  const Checkpoint model(test::source_path("tests/golden/bnb_fp4"));
  const SafetensorsFile golden(test::source_path("tests/golden/bnb_fp4/dequantized.safetensors"));
  for (const auto& [name, rows] : {std::pair<std::string, std::uint32_t>{"double.weight", 39}, {"single.weight", 3}}) {
    const auto matrix = bnb_matrix(model, name, rows, 448);
    ASSERT_TRUE(matrix) << name;
    EXPECT_EQ(matrix->book, CodeBook::fp4);
    EXPECT_EQ(matrix->nested_absmax.tensor != nullptr, name == "double.weight");
    EXPECT_EQ(values_of(*matrix, rows * 448), golden.read_as_f32(name)) << name;
  }
  EXPECT_TRUE(is_bnb_part("w.quant_state.bitsandbytes__fp4", "w"));
}

// Parts begin within a block of 256 absmax and end in another one.
TEST(Bnb, ReadsPartsAsTheyAreInTheWhole) {
  const Checkpoint model(test::source_path("tests/golden/bnb/model"));
  const auto matrix = bnb_matrix(model, weight, out_features, in_features);
  const std::size_t blocks = out_features * in_features / nf4_block;
  std::vector<std::uint8_t> codes(blocks * nf4_block / 2);
  std::vector<float> absmax(blocks);
  read_bnb(*matrix, 0, codes, absmax);
  for (const auto& [first, count] : {std::pair{0u, 1u}, {255u, 2u}, {256u, 256u}, {300u, 700u}, {1535u, 1u}}) {
    std::vector<std::uint8_t> part(count * nf4_block / 2);
    std::vector<float> part_absmax(count);
    read_bnb(*matrix, first, part, part_absmax);
    EXPECT_TRUE(std::ranges::equal(part, std::span(codes).subspan(first * nf4_block / 2, part.size()))) << first;
    EXPECT_TRUE(std::ranges::equal(part_absmax, std::span(absmax).subspan(first, count))) << first;
  }
}

TEST(Bnb, ChecksAFolderAndKnowsWhatIsQuantised) {
  const auto folder = test::source_path("tests/golden/bnb/model");
  const Checkpoint model(folder);
  EXPECT_NO_THROW(check_checkpoint(model, read_model_config(folder)));
  const BaseTensor tensor{weight, {out_features, in_features}};
  EXPECT_TRUE(quantised(model, tensor));
  EXPECT_FALSE(quantised(Checkpoint(test::source_path("models/tiny-qwen3")), tensor));
  EXPECT_FALSE(quantised(model, {"model.layers.9.self_attn.q_proj.weight", {out_features, in_features}}));
}

// As bitsandbytes writes it without double quantisation, and with another `quant_storage`.
TEST(Bnb, ReadsAbsmaxInF32AndCodesOfAnyType) {
  const test::TemporaryFolder folder;
  Tensors tensors = golden_tensors();
  const std::size_t count = std::size_t{out_features} * in_features;
  std::vector<float> absmax(nf4_blocks(count));
  for (std::size_t i = 0; i < absmax.size(); ++i) absmax[i] = 0.01f * static_cast<float>(i % 37);
  const std::string start = weight;
  tensors.erase(start + ".nested_absmax");
  tensors.erase(start + ".nested_quant_map");
  tensors[start + ".absmax"] = {DType::f32, {static_cast<std::int64_t>(absmax.size())}, as_text(std::span<const float>(absmax))};
  const std::string state = R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [384, 256]})";
  tensors[state_name] = {DType::u8, {static_cast<std::int64_t>(state.size())}, state};
  tensors[weight].dtype = DType::bf16;
  tensors[weight].shape = {static_cast<std::int64_t>(count / 4), 1};
  const std::string codes = tensors[weight].bytes;
  write(folder / "model.safetensors", tensors);
  const Checkpoint checkpoint(folder.path());
  const auto matrix = bnb_matrix(checkpoint, weight, out_features, in_features);
  ASSERT_TRUE(matrix);
  std::vector<std::uint8_t> codes_read(nf4_packed_bytes(count));
  std::vector<float> absmax_read(absmax.size());
  read_bnb(*matrix, 0, codes_read, absmax_read);
  EXPECT_EQ(as_text(std::span<const std::uint8_t>(codes_read)), codes);
  EXPECT_EQ(absmax_read, absmax);
}

TEST(Bnb, NamesEachPartThatIsMissingOrOfAnotherSize) {
  const Tensors whole = golden_tensors();
  EXPECT_EQ(whole.size(), 6u);
  for (const auto& [name, unused] : whole) {
    if (name == state_name) continue;  // without it a weight is not quantised
    const test::TemporaryFolder folder;
    Tensors tensors = whole;
    tensors.erase(name);
    write(folder / "model.safetensors", tensors);
    expect_error<DataError>([&] { bnb_matrix(Checkpoint(folder.path()), weight, out_features, in_features); }, folder.path().string(), name);
    tensors[name] = whole.at(name);
    const std::size_t element = size_of(tensors[name].dtype);
    tensors[name].shape = {static_cast<std::int64_t>(tensors[name].bytes.size() / element) + 1};
    tensors[name].bytes.resize(tensors[name].bytes.size() + element);
    write(folder / "model.safetensors", tensors);
    expect_error<DataError>([&] { bnb_matrix(Checkpoint(folder.path()), weight, out_features, in_features); }, "model.safetensors", name);
  }
}

TEST(Bnb, RefusesOtherStates) {
  const auto expect = [](const std::string& from, const std::string& to, const std::string& part) {
    const test::TemporaryFolder folder;
    Tensors tensors = golden_tensors();
    replace_state(tensors, from, to);
    write(folder / "model.safetensors", tensors);
    expect_error<DataError>([&] { bnb_matrix(Checkpoint(folder.path()), weight, out_features, in_features); }, "model.safetensors", state_name, part);
  };
  expect(R"("nf4")", R"("fp4")", "\"quant_type\" must be \"nf4\", as the tensor's name says");
  expect(R"("blocksize": 64)", R"("blocksize": 128)", "\"blocksize\" must be 64");
  expect("[384, 256]", "[256, 384]", "\"shape\" must be [384, 256]");
  expect("[384, 256]", "null", "shape");
  expect(R"("nested_blocksize": 256)", R"("nested_blocksize": 0)", "nested_blocksize");
  expect(R"("nested_offset": 0)", R"("nested_offset": 1e99, "x": 0)", "nested_offset");
  expect(R"("bfloat16")", R"("int8")", "\"dtype\" must be \"bfloat16\"");
  expect("{", "", "");
}

TEST(Bnb, RefusesOtherCodeBooksAndKinds) {
  const test::TemporaryFolder folder;
  Tensors tensors = golden_tensors();
  Tensor& map = tensors.at(std::string(weight) + ".quant_map");
  map.bytes[5] = static_cast<char>(map.bytes[5] ^ 1);
  write(folder / "model.safetensors", tensors);
  expect_error<DataError>([&] { bnb_matrix(Checkpoint(folder.path()), weight, out_features, in_features); }, "code book of NF4");
  tensors = golden_tensors();
  const std::string states = std::string(weight) + ".quant_state.bitsandbytes__";
  tensors[states + "fp4"] = tensors.at(state_name);
  write(folder / "model.safetensors", tensors);
  expect_error<DataError>([&] { bnb_matrix(Checkpoint(folder.path()), weight, out_features, in_features); }, "both as nf4 and as fp4");
  tensors.erase(state_name);
  write(folder / "model.safetensors", tensors);
  expect_error<DataError>([&] { bnb_matrix(Checkpoint(folder.path()), weight, out_features, in_features); }, "\"quant_type\" must be \"fp4\"");
  Tensor& fp4 = tensors.at(states + "fp4");
  fp4.bytes.replace(fp4.bytes.find("nf4"), 3, "fp4");
  write(folder / "model.safetensors", tensors);
  expect_error<DataError>([&] { bnb_matrix(Checkpoint(folder.path()), weight, out_features, in_features); }, "code book of FP4");
  tensors[states + "int4"] = fp4;
  tensors.erase(states + "fp4");
  write(folder / "model.safetensors", tensors);
  expect_error<DataError>([&] { bnb_matrix(Checkpoint(folder.path()), weight, out_features, in_features); }, "quantised as int4; of bitsandbytes NF4 and FP4");
}

// A norm with the state of a matrix is a norm, and what lies beside it is left out.
TEST(Bnb, LooksAtProjectionsAlone) {
  const test::TemporaryFolder folder;
  Tensors tensors = golden_tensors();
  const std::string norm = "model.norm.weight";
  tensors[norm] = {DType::f32, {256}, std::string(1024, '\0')};
  tensors[norm + ".quant_state.bitsandbytes__nf4"] = tensors.at(state_name);
  write(folder / "model.safetensors", tensors);
  EXPECT_FALSE(quantised(Checkpoint(folder.path()), {norm, {256}}));
}

TEST(Bnb, RefusesAnAbsmaxThatIsNotFinite) {
  const test::TemporaryFolder folder;
  Tensors tensors = golden_tensors();
  const float bad = std::numeric_limits<float>::infinity();
  tensors.at(std::string(weight) + ".nested_absmax").bytes.replace(4, 4, as_text(std::span(&bad, 1)));
  write(folder / "model.safetensors", tensors);
  const Checkpoint checkpoint(folder.path());
  const auto matrix = bnb_matrix(checkpoint, weight, out_features, in_features);
  ASSERT_TRUE(matrix);
  expect_error<DataError>([&] { values_of(*matrix, std::size_t{out_features} * in_features); }, "model.safetensors", "absmax of block", weight);
}

}  // namespace
}  // namespace nibble::bnb_test
