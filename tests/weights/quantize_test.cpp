#include "nibble/weights/quantize.h"

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/io/json.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/merge.h"
#include "tests/support/files.h"

namespace nibble::quantize_test {
namespace {

using test::expect_error;

using test::tiny;
const fs::path golden = test::source_path("tests/golden/bnb/model");

std::string bytes_of(const Checkpoint& checkpoint, const std::string& name) {
  std::string text(checkpoint.at(name).tensor->bytes, '\0');
  checkpoint.read(name, 0, std::as_writable_bytes(std::span(text)));
  return text;
}

struct Nf4 {
  std::vector<std::uint8_t> packed;
  std::vector<float> absmax;
  bool operator==(const Nf4&) const = default;
};

// Of a projection, as it is quantised while it is read, and as a folder in 4 bits has it.
Nf4 quantised_here(const Checkpoint& checkpoint, const BaseTensor& tensor) {
  Nf4 result{std::vector<std::uint8_t>(nf4_packed_bytes(tensor.numel())), std::vector<float>(nf4_blocks(tensor.numel()))};
  const std::string bytes = bytes_of(checkpoint, tensor.name);
  nf4_quantize(*checkpoint.at(tensor.name).tensor->dtype, std::as_bytes(std::span(bytes)), result.packed, result.absmax,
               {.threads = 1, .simd = Simd::scalar});
  return result;
}
Nf4 as_stored(const BnbMatrix& matrix) {
  const std::size_t count = std::size_t{matrix.rows} * matrix.columns;
  Nf4 result{std::vector<std::uint8_t>(nf4_packed_bytes(count)), std::vector<float>(nf4_blocks(count))};
  read_bnb(matrix, 0, result.packed, result.absmax);
  return result;
}

class Quantize : public testing::Test {
 protected:
  QuantizeResult quantize(QuantizeOptions options) const {
    if (options.model.empty()) options.model = tiny;
    options.output = output_;
    return quantize_model(options);
  }

  // Every projection is what quantising `source` gives, and everything else its bytes; returns how many projections there are.
  int expect_same_model(const Checkpoint& source, DType dtype) const {
    const Checkpoint written(output_);
    const ModelConfig config = read_model_config(output_);
    EXPECT_NO_THROW(check_checkpoint(written, config));
    int projections = 0;
    for (const BaseTensor& tensor : base_tensors(config)) {
      const auto matrix = quantised(written, tensor);
      if (!matrix) {
        EXPECT_EQ(bytes_of(written, tensor.name), bytes_of(source, tensor.name)) << tensor.name;
        continue;
      }
      EXPECT_EQ(as_stored(*matrix), quantised_here(source, tensor)) << tensor.name;
      EXPECT_EQ(matrix->dtype, dtype);
      ++projections;
    }
    return projections;
  }

  test::TemporaryFolder folder_;
  fs::path output_ = folder_ / "quantised";
};

TEST_F(Quantize, WritesWhatBitsandbytesWritesByteForByte) {
  const auto result = quantize({.double_quant = true, .compute_dtype = DType::f32});
  EXPECT_EQ(result.matrices, 28u);
  EXPECT_TRUE(test::slurp(output_ / "model.safetensors") == test::slurp(golden / "model.safetensors"));
  EXPECT_EQ(test::slurp(output_ / "config.json"), test::slurp(golden / "config.json"));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}) {
    EXPECT_EQ(test::slurp(output_ / name), test::slurp(tiny / name)) << name;
  }
}

// What is read back is bit for bit what quantising while reading gives; bitsandbytes' codes do not depend on what becomes of the scales.
TEST_F(Quantize, KeepsTheScalesAsTheyAre) {
  double last = 0;
  const auto result = quantize({.progress = [&](double done) {
    EXPECT_GE(done, last);
    last = done;
  }});
  EXPECT_EQ(last, 1.0);
  const Checkpoint source(tiny), written(output_), bitsandbytes(golden);
  EXPECT_EQ(result.source_bytes, source.total_bytes());
  EXPECT_EQ(result.saved.bytes, written.total_bytes());
  EXPECT_EQ(expect_same_model(source, DType::bf16), 28);
  int compared = 0;
  for (const auto& [name, entry] : bitsandbytes.tensors()) {
    if (name.find("absmax") != name.npos || name.find("nested") != name.npos || name.ends_with(bnb_state_suffix)) continue;
    EXPECT_EQ(bytes_of(written, name), bytes_of(bitsandbytes, name)) << name;
    ++compared;
  }
  EXPECT_EQ(compared, 46 + 28);  // the model's tensors, and a code book for each projection
  EXPECT_EQ(bytes_of(written, std::string("model.layers.1.mlp.up_proj.weight") + std::string(bnb_state_suffix)),
            R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [768, 256]})");
  EXPECT_EQ(read_json_file(output_ / "config.json")["quantization_config"]["bnb_4bit_use_double_quant"], false);
}

TEST_F(Quantize, TakesWeightsOfEachType) {
  for (const auto& [dtype, name] : {std::pair{DType::f32, "float32"}, {DType::f16, "float16"}}) {
    const fs::path source = folder_ / name;
    merge({.model = tiny, .output = source, .dtype = dtype});
    quantize({.model = source, .overwrite = true});
    EXPECT_EQ(expect_same_model(Checkpoint(source), dtype), 28);
    EXPECT_EQ(read_json_file(output_ / "config.json")["dtype"], name);
  }
}

TEST_F(Quantize, WritesShards) {
  const auto result = quantize({.double_quant = true, .max_shard_bytes = 1'000'000});
  EXPECT_EQ(result.saved.files, 3u);  // the embedding's two million bytes have one to themselves
  const Json index = read_json_file(output_ / "model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], result.saved.bytes);
  EXPECT_EQ(index["metadata"]["total_parameters"], Checkpoint(tiny).total_bytes() / 2);
  const Checkpoint written(output_), bitsandbytes(golden);
  EXPECT_EQ(written.tensors().size(), bitsandbytes.tensors().size());
  for (const auto& [name, entry] : bitsandbytes.tensors()) {
    EXPECT_EQ(bytes_of(written, name), bytes_of(bitsandbytes, name)) << name;
  }
}

TEST_F(Quantize, RefusesWhatItCannotWrite) {
  expect_error<DataError>([&] { quantize({.model = golden}); }, golden.string(), "in 4 bits already");
  expect_error<UsageError>([&] { quantize({.max_shard_bytes = 0}); }, "0 bytes");
  EXPECT_TRUE(fs::is_empty(folder_.path()));
  expect_error<UsageError>([&] { quantize_model({.model = tiny, .output = tiny}); }, "take the place");
  fs::create_directory(output_);
  std::ofstream(output_ / "mine.gguf") << "x";
  expect_error<UsageError>([&] { quantize({}); }, "not empty");
  quantize({.overwrite = true});
  EXPECT_FALSE(fs::exists(output_ / "mine.gguf"));
}

// A value that is not finite ends it, and nothing of it stays.
TEST_F(Quantize, NamesAValueThatIsNotFinite) {
  const fs::path source = folder_ / "source";
  fs::create_directory(source);
  fs::copy_file(tiny / "config.json", source / "config.json");
  std::string bytes = test::slurp(tiny / "model.safetensors");
  const Checkpoint checkpoint(tiny);
  const TensorInfo& tensor = *checkpoint.at("model.layers.2.mlp.down_proj.weight").tensor;
  bytes[tensor.offset + 2 * 1000 + 1] = '\x7f';
  bytes[tensor.offset + 2 * 1000] = '\xc0';
  std::ofstream(source / "model.safetensors", std::ios::binary) << bytes;
  expect_error<DataError>([&] { quantize({.model = source}); }, "model.layers.2.mlp.down_proj.weight", "index 1000");
  EXPECT_FALSE(fs::exists(output_));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), {}), 1);
}

}  // namespace
}  // namespace nibble::quantize_test
