#include "tests/model/generator_texts.h"

#include "nibble/model/model.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <numeric>

namespace nibble::generator_test {

ModelState load_tiny(ProductPath path, bool adapter) {
  return ModelState::load(test::device(), test::source_path("models/tiny-qwen3"),
                          {.path = path,
                           .adapter = adapter ? test::source_path("tests/golden/tiny/adapter_nonzero") : "",
                           .trainable = false});
}

Tokens golden_row(std::size_t row) {
  const SafetensorsFile golden(test::source_path("tests/golden/tiny/golden.safetensors"));
  const auto read = [&](std::string_view name) {
    const TensorInfo& info = golden.at(name);
    std::vector<std::int32_t> values(info.numel());
    golden.read(info, 0, std::as_writable_bytes(std::span(values)));
    return values;
  };
  const auto ids = read("input_ids"), mask = read("attention_mask");
  const auto width = static_cast<std::size_t>(golden.at("input_ids").shape[1]);
  Tokens tokens;
  for (std::size_t i = row * width; i < (row + 1) * width && mask[i] == 1; ++i) {
    tokens.push_back(static_cast<std::uint32_t>(ids[i]));
  }
  return tokens;
}

std::vector<std::vector<float>> training_logits(const ModelState& state, const Tokens& tokens, bool with_adapter) {
  const auto count = static_cast<std::uint32_t>(tokens.size());
  Model model(state, {.max_tokens = count, .max_labels = count, .trainable = false});
  model.use_adapter(with_adapter);
  Tokens position(count);
  std::iota(position.begin(), position.end(), 0u);
  const Tokens begin(count, 0), end(count, count);
  gpu::Recorder recorder(test::device());
  const DeviceStream stream = model.upload(
      recorder, {.tokens = tokens, .position = position, .segment_begin = begin, .segment_end = end, .label_rows = {}, .labels = {}});
  const Tensor rows = test::upload_u32(position);
  const Tensor logits = model.logits(recorder, model.forward(recorder, stream), rows, count);
  recorder.submit();
  const auto values = test::download(logits);
  std::vector<std::vector<float>> result;
  for (auto at = values.begin(); at != values.end(); at += state.vocab_size()) {
    result.emplace_back(at, at + state.vocab_size());
  }
  return result;
}

}  // namespace nibble::generator_test
