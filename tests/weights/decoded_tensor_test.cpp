#include "nibble/weights/decoded_tensor.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "nibble/base/error.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/merge.h"
#include "nibble/weights/quantize.h"
#include "tests/support/files.h"

namespace nibble::decoded_tensor_test {
namespace {

using test::expect_error;

constexpr Fp8Blocks golden_blocks{16, 24};

struct Tensor {
  DType dtype;
  Shape shape;
  std::string bytes;
};

void write(const fs::path& path, const std::map<std::string, Tensor>& tensors) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) specs.push_back({name, tensor.dtype, tensor.shape});
  SafetensorsWriter writer(path, specs);
  for (const auto& spec : writer.tensors()) writer.append(std::as_bytes(std::span(tensors.at(spec.name).bytes)));
  writer.finish();
}

// Calls the U8 tensors of a file F8_E4M3; the header grows by what its padding and the names need.
void call_bytes_f8(const fs::path& path) {
  std::string text = test::slurp(path);
  std::uint64_t length = 0;
  std::memcpy(&length, text.data(), 8);
  std::string header = text.substr(8, length);
  for (std::size_t at = header.find("\"U8\""); at != header.npos; at = header.find("\"U8\"", at)) header.replace(at, 4, "\"F8_E4M3\"");
  header.append((8 - header.size() % 8) % 8, ' ');
  const std::uint64_t grown = header.size();
  std::ofstream(path, std::ios::binary) << std::string(reinterpret_cast<const char*>(&grown), 8) << header << text.substr(8 + length);
}

template <typename T>
std::string as_text(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

Checkpoint golden(const std::optional<Fp8Blocks>& blocks = golden_blocks) {
  Checkpoint checkpoint(std::make_unique<const SafetensorsFile>(test::source_path("tests/golden/eight_bits/weights.safetensors")));
  decode_tensors(checkpoint, blocks);
  return checkpoint;
}

TEST(DecodedTensor, IsWhatPytorchMakesOfItBitForBit) {
  const SafetensorsFile expected(test::source_path("tests/golden/eight_bits/decoded.safetensors"));
  const Checkpoint checkpoint = golden();
  EXPECT_EQ(expected.tensors().size(), 6u);
  for (const auto& [name, info] : expected.tensors()) {
    const Checkpoint::Entry& entry = checkpoint.at(name);
    EXPECT_EQ(entry.tensor->dtype, DType::f32) << name;
    EXPECT_EQ(entry.tensor->shape, info.shape) << name;
    EXPECT_EQ(as_text(checkpoint.read_as_f32(name)), as_text(expected.read_as_f32(info))) << name;
    EXPECT_EQ(entry.file->path(), test::source_path("tests/golden/eight_bits/weights.safetensors"));
  }
}

TEST(DecodedTensor, LeavesOtherTypesAndForgetsScales) {
  const Checkpoint checkpoint = golden();
  EXPECT_EQ(checkpoint.tensors().size(), 7u);
  EXPECT_EQ(checkpoint.at("half.weight").tensor->dtype, DType::bf16);
  EXPECT_EQ(checkpoint.at("blocks.weight").tensor->dtype_name, "F8_E4M3");
  EXPECT_EQ(stored_bytes(*checkpoint.at("blocks.weight").tensor), 2000u);
  EXPECT_EQ(stored_bytes(*checkpoint.at("wide.weight").tensor), 280u);
  EXPECT_EQ(stored_bytes(*checkpoint.at("half.weight").tensor), 24u);
  EXPECT_EQ(written_dtype(*checkpoint.at("blocks.weight").tensor), DType::bf16);
  EXPECT_EQ(written_dtype(*checkpoint.at("wide.weight").tensor), DType::f32);
}

// Pieces begin and end within a run of columns with one scale, within a row, at the end too.
TEST(DecodedTensor, ReadsPartsAsTheyAreInTheWhole) {
  const Checkpoint checkpoint = golden();
  for (const char* name : {"blocks.weight", "rows.weight", "whole.weight"}) {
    const auto whole = checkpoint.read_as_f32(name);
    for (const auto& [first, count] : {std::pair{0u, 1u}, {23u, 3u}, {47u, 60u}, {799u, 2u}, {1u, 1990u}, {1999u, 1u}, {2000u, 0u}}) {
      std::vector<float> part(count);
      checkpoint.read(name, 4 * first, std::as_writable_bytes(std::span(part)));
      EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first)) << name << " " << first;
    }
    std::vector<std::byte> bytes(8);
    expect_error<Error>([&] { checkpoint.read(name, 8000 - 4, bytes); }, name);
    expect_error<Error>([&] { checkpoint.read(name, 2, bytes); }, name);
  }
}

TEST(DecodedTensor, RefusesScalesOfAnotherShape) {
  expect_error<DataError>([] { golden(Fp8Blocks{16, 16}); }, "eight_bits/weights.safetensors", "blocks.weight_scale_inv", "[3, 3]", "[3, 4]", "16 x 16");
  expect_error<DataError>([] { golden(std::nullopt); }, "blocks.weight_scale_inv", "[1, 1] (one a block of 128 x 128)");
}

// A matrix of 130 x 130 in F8_E4M3, with a scale for each block of 128 x 128.
std::map<std::string, Tensor> small_tensors() {
  std::string bytes(130 * 130, '\0');
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i % 0x7f);
  return {{"w", {DType::u8, {130, 130}, bytes}}, {"w_scale_inv", {DType::f32, {2, 2}, as_text(std::vector{1.0f, 2.0f, 0.5f, 3.0f})}}};
}

TEST(DecodedTensor, TakesBlocksOf128WhereConfigJsonNamesNone) {
  const test::TemporaryFolder folder;
  write(folder / "model.safetensors", small_tensors());
  call_bytes_f8(folder / "model.safetensors");
  Checkpoint checkpoint(folder.path());
  decode_tensors(checkpoint, Fp8Blocks{});
  const auto values = checkpoint.read_as_f32("w");
  for (const std::size_t i : {0u, 127u, 128u, 129u, 127u * 130u + 128u, 128u * 130u, 129u * 130u + 129u}) {
    const int code = static_cast<int>(i % 0x7f), exponent = code >> 3, mantissa = code & 7;
    const double plain = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    const std::array scales{1.0, 2.0, 0.5, 3.0};
    EXPECT_EQ(values[i], plain * scales[i / 130 / 128 * 2 + i % 130 / 128]) << i;
  }
}

TEST(DecodedTensor, NamesWhatIsMissingOrDamaged) {
  const auto refused = [](const std::map<std::string, Tensor>& tensors, auto... parts) {
    const test::TemporaryFolder folder;
    write(folder / "model.safetensors", tensors);
    call_bytes_f8(folder / "model.safetensors");
    Checkpoint checkpoint(folder.path());
    expect_error<DataError>([&] { decode_tensors(checkpoint, Fp8Blocks{}); }, parts...);
  };
  auto tensors = small_tensors();
  tensors["w_scale"] = tensors["w_scale_inv"];
  refused(tensors, "w has both w_scale_inv and w_scale");
  tensors.erase("w_scale");
  tensors["w_zero_point"] = {DType::i32, {1}, std::string("\0\0\1\0", 4)};
  refused(tensors, "w_zero_point", "zero points");
  tensors = small_tensors();
  tensors.erase("w_scale_inv");
  refused(tensors, "neither w_scale_inv nor w_scale is there");
  tensors = small_tensors();
  tensors["w_scale_inv"].bytes.replace(8, 4, as_text(std::vector{std::numeric_limits<float>::infinity()}));
  refused(tensors, "w_scale_inv", "not finite, at index 2");
  tensors = small_tensors();
  tensors["w_scale_inv"] = {DType::i32, {2, 2}, std::string(16, '\1')};
  refused(tensors, "w_scale_inv", "I32");
  tensors = small_tensors();
  tensors["w"].shape = {130, 13, 10};
  refused(tensors, "[130, 13, 10]; only matrices have scales");
}

TEST(DecodedTensor, ZeroPointsOfZeroAreNone) {
  const test::TemporaryFolder folder;
  auto tensors = small_tensors();
  tensors["w_zero_point"] = {DType::i32, {1}, std::string(4, '\0')};
  write(folder / "model.safetensors", tensors);
  call_bytes_f8(folder / "model.safetensors");
  Checkpoint checkpoint(folder.path());
  EXPECT_NO_THROW(decode_tensors(checkpoint, Fp8Blocks{}));
  EXPECT_EQ(checkpoint.tensors().size(), 1u);
}

// The tiny model with its projections in eight bits, each row with a scale; the values are those of the codes.
class Fp8Folder : public testing::Test {
 protected:
  Fp8Folder() {
    const fs::path tiny = test::source_path("models/tiny-qwen3");
    const Checkpoint source(tiny);
    std::map<std::string, Tensor> tensors;
    for (const BaseTensor& tensor : base_tensors(read_model_config(tiny))) {
      const TensorInfo& info = *source.at(tensor.name).tensor;
      if (is_projection(tensor.name, tensor.shape)) {
        tensors[tensor.name] = in_eight_bits(tensor);
        const std::vector<float> scales(static_cast<std::size_t>(tensor.shape[0]), 0.001f);
        tensors[tensor.name + "_scale"] = {DType::f32, {tensor.shape[0], 1}, as_text(scales)};
      } else {
        tensors[tensor.name] = {*info.dtype, info.shape, std::string(info.bytes, '\0')};
        source.read(tensor.name, 0, std::as_writable_bytes(std::span(tensors[tensor.name].bytes)));
      }
    }
    write(folder_ / "model.safetensors", tensors);
    call_bytes_f8(folder_ / "model.safetensors");
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) fs::copy_file(tiny / name, folder_ / name);
    Json config = read_json_file(tiny / "config.json");
    config["quantization_config"] = {{"quant_method", "compressed-tensors"}, {"config_groups", {{"group_0", {{"weights", {{"type", "float"}, {"num_bits", 8}}}}}}}};
    folder_.write("config.json", write_json(config));
  }

  Tensor in_eight_bits(const BaseTensor& tensor) {
    Tensor result{DType::u8, tensor.shape, std::string(tensor.numel(), '\0')};
    std::vector<float>& values = expected_[tensor.name];
    for (std::size_t i = 0; i < result.bytes.size(); ++i) {
      const int exponent = static_cast<int>((i * 7 + tensor.name.size()) % 15), mantissa = static_cast<int>(i * 5 % 8);
      result.bytes[i] = static_cast<char>((i % 3 == 0 ? 0x80 : 0) | exponent << 3 | mantissa);
      const float plain = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
      values.push_back((i % 3 == 0 ? -plain : plain) * 0.001f);
    }
    return result;
  }

  const test::TemporaryFolder folder_;
  std::map<std::string, std::vector<float>> expected_;
};

TEST_F(Fp8Folder, IsMergedAndQuantisedFromItsValues) {
  const ModelConfig config = read_model_config(folder_.path());
  EXPECT_NO_THROW(check_checkpoint(open_checkpoint(folder_.path(), config), config));
  const test::TemporaryFolder out;
  merge({.model = folder_.path(), .output = out / "f32", .dtype = DType::f32});
  merge({.model = folder_.path(), .output = out / "stored"});
  EXPECT_FALSE(read_json_file(out / "f32/config.json").contains("quantization_config"));
  const QuantizeResult quantized = quantize_model({.model = folder_.path(), .output = out / "nf4"});
  EXPECT_LT(quantized.source_bytes, fs::file_size(folder_ / "model.safetensors"));
  const Checkpoint whole(out / "f32"), stored(out / "stored"), nf4(out / "nf4");
  for (const auto& [name, values] : expected_) {
    EXPECT_EQ(whole.read_as_f32(name), values) << name;
    EXPECT_EQ(stored.at(name).tensor->dtype, DType::bf16) << name;
    const auto shape = whole.at(name).tensor->shape;
    const auto matrix = bnb_matrix(nf4, name, static_cast<std::uint32_t>(shape[0]), static_cast<std::uint32_t>(shape[1]));
    ASSERT_TRUE(matrix) << name;
    EXPECT_EQ(matrix->dtype, DType::bf16) << name;
    std::vector<std::uint8_t> packed(nf4_packed_bytes(values.size())), found(packed.size());
    std::vector<float> absmax(nf4_blocks(values.size())), found_absmax(absmax.size());
    nf4_quantize(DType::f32, std::as_bytes(std::span(values)), packed, absmax);
    read_bnb(*matrix, 0, found, found_absmax);
    EXPECT_EQ(found, packed) << name;
    EXPECT_EQ(found_absmax, absmax) << name;
  }
}

}  // namespace
}  // namespace nibble::decoded_tensor_test
