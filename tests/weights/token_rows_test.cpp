#include "nibble/weights/token_rows.h"

#include <cmath>

#include "nibble/base/error.h"
#include "nibble/io/json.h"
#include "nibble/weights/adapter_export.h"
#include "nibble/weights/merge.h"
#include "tests/support/files.h"

namespace nibble::token_rows_test {
namespace {

using test::expect_error;

const fs::path tiny = test::source_path("models/tiny-qwen3"), llama = test::source_path("tests/golden/llama/model");
const fs::path tied = test::source_path("tests/golden/tokens/tied/adapter_nonzero"), untied = test::source_path("tests/golden/tokens/untied/adapter_nonzero");

using Ids = std::vector<std::uint32_t>;

TEST(TokenRowsOfAnAdapter, AreReadAndWrittenAsPeftHasThem) {
  const test::TemporaryFolder folder;
  for (const auto& [adapter, model] : {std::pair{tied, tiny}, std::pair{untied, llama}}) {
    const LoraAdapter read = load_lora_adapter(adapter, read_model_config(model));
    const SafetensorsFile file(adapter / "adapter_model.safetensors");
    EXPECT_EQ(read.config.trained_tokens, adapter == tied ? Ids({3020, 7, 901}) : Ids({302, 7}));
    EXPECT_EQ(read.config.trained_head_tokens, adapter == tied ? Ids() : Ids({91, 302, 5}));
    EXPECT_EQ(read.token_rows, file.read_as_f32(peft_token_rows_name));
    EXPECT_EQ(read.head_rows, adapter == untied ? file.read_as_f32(peft_head_rows_name) : std::vector<float>());
    save_lora_adapter(folder / "out", read);
    EXPECT_TRUE(test::slurp(folder / "out/adapter_model.safetensors") == test::slurp(adapter / "adapter_model.safetensors"));
    constexpr const char* key = "trainable_token_indices";
    EXPECT_EQ(read_json_file(folder / "out/adapter_config.json")[key], read_json_file(adapter / "adapter_config.json")[key]);
  }
}

// A copy of an adapter with other indices.
fs::path with_indices(const test::TemporaryFolder& folder, const fs::path& from, const Json& indices, const Json& more = Json::object()) {
  const fs::path to = folder / "changed";
  fs::remove_all(to);
  fs::copy(from, to);
  Json config = read_json_file(to / "adapter_config.json");
  config["trainable_token_indices"] = indices;
  config.update(more);
  std::ofstream(to / "adapter_config.json") << config;
  return to;
}

TEST(TokenRowsOfAnAdapter, OfATiedHeadAreTheEmbeddings) {
  const test::TemporaryFolder folder;
  const ModelConfig model = read_model_config(tiny);
  const Json same{{"embed_tokens", {3020, 7, 901}}, {"lm_head", {3020, 7, 901}}};
  EXPECT_EQ(load_lora_adapter(with_indices(folder, tied, same), model).config.trained_head_tokens, Ids());
  EXPECT_EQ(load_lora_adapter(with_indices(folder, tied, {{"model.embed_tokens", {3020, 7, 901}}}), model).config.trained_tokens.size(), 3u);
  for (const Json& apart : {Json{{"embed_tokens", {3020, 7, 901}}, {"lm_head", {7}}}, Json{{"lm_head", {7}}}}) {
    expect_error<DataError>([&] { load_lora_adapter(with_indices(folder, tied, apart), model); }, "trainable_token_indices", "ties the two");
  }
}

TEST(TokenRowsOfAnAdapter, WhatDoesNotFitIsRefused) {
  const test::TemporaryFolder folder;
  const ModelConfig model = read_model_config(tiny);
  const auto refuse = [&](const Json& indices, const std::string& part, const std::string& other) {
    expect_error<DataError>([&] { load_lora_adapter(with_indices(folder, tied, indices), model); }, part, other);
  };
  refuse({3020, 7}, "trainable_tokens_delta", "[3, 256]");
  refuse({3020, 7, 4096}, "token 4096", "4096 rows");
  refuse({3020, 7, 7}, "trainable_token_indices", "comes twice");
  refuse({3020, 7, -1}, "trainable_token_indices", "4194303");
  refuse({{"wte", {3020, 7, 901}}}, "trainable_token_indices", "embed_tokens");
  refuse(nullptr, "trainable_tokens_delta", "no LoRA matrix");
  expect_error<DataError>([&] { load_lora_adapter(with_indices(folder, tied, {3020}, {{"modules_to_save", {"lm_head"}}}), model); }, "trainable_token_indices",
                          "modules_to_save");
}

TEST(TokenRowsOfAnAdapter, BeginAsTheBasesOrAtTheMean) {
  for (const fs::path& folder : {tiny, llama}) {
    const ModelConfig model = read_model_config(folder);
    const Checkpoint base(folder);
    const auto table = base.read_as_f32(embedding_tensor_name);
    const std::size_t columns = model.hidden_size;
    LoraAdapter adapter = make_lora_adapter(model, {});
    adapter.config.trained_tokens = {9};
    adapter.token_rows.assign(columns, 1.0f);
    add_token_rows(adapter, base, model, {.ids = {9, 4095, 4090, 0}, .fresh = {4090}, .known = 4000, .head = true});
    EXPECT_EQ(adapter.config.trained_tokens, (Ids{9, 4095, 4090, 0}));
    EXPECT_EQ(adapter.config.trained_head_tokens, model.tie_word_embeddings ? Ids() : Ids({9, 4095, 4090, 0}));
    const auto row = [&](const std::vector<float>& rows, std::size_t i) {
      return std::vector<float>(rows.begin() + static_cast<std::ptrdiff_t>(i * columns), rows.begin() + static_cast<std::ptrdiff_t>((i + 1) * columns));
    };
    EXPECT_EQ(row(adapter.token_rows, 0), std::vector<float>(columns, 1.0f)) << "the adapter has this one already";
    EXPECT_EQ(row(adapter.token_rows, 1), row(table, 4095));
    EXPECT_EQ(row(adapter.token_rows, 3), row(table, 0));
    const bool of_head = !model.tie_word_embeddings;
    EXPECT_EQ(of_head ? row(adapter.head_rows, 0) : std::vector<float>(), of_head ? row(base.read_as_f32(head_tensor_name), 9) : std::vector<float>());
    for (std::size_t c = 0; c < columns; ++c) {
      double mean = 0;
      for (std::size_t i = 0; i < 4000; ++i) mean += table[i * columns + c];
      ASSERT_FLOAT_EQ(adapter.token_rows[2 * columns + c], static_cast<float>(mean / 4000));
    }
  }
}

TEST(TokenRowsOfAnAdapter, AreMergedIntoTheirTables) {
  const test::TemporaryFolder folder;
  for (const auto& [adapter, model] : {std::pair{tied, tiny}, std::pair{untied, llama}}) {
    const ModelConfig config = read_model_config(model);
    const LoraAdapter own = load_lora_adapter(adapter, config);
    merge({.model = model, .output = folder / "m", .adapters = {{adapter}}, .dtype = DType::f32, .overwrite = true});
    const Checkpoint before(model), after(folder / "m");
    const auto expect_table = [&](std::string_view name, const Ids& ids, const std::vector<float>& rows) {
      const auto old = before.read_as_f32(name), now = after.read_as_f32(name);
      for (std::size_t i = 0; i < old.size(); ++i) {
        const auto at = static_cast<std::size_t>(std::find(ids.begin(), ids.end(), i / config.hidden_size) - ids.begin());
        ASSERT_EQ(now[i], at < ids.size() ? rows[at * config.hidden_size + i % config.hidden_size] : old[i]) << name << " " << i;
      }
    };
    expect_table(embedding_tensor_name, own.config.trained_tokens, own.token_rows);
    if (!config.tie_word_embeddings) expect_table(head_tensor_name, own.config.trained_head_tokens, own.head_rows);
  }
  for (const MergeOptions& several : {MergeOptions{.model = tiny, .output = folder / "s", .adapters = {{tied, 0.5}}},
                                      MergeOptions{.model = tiny, .output = folder / "s", .adapters = {{tied}, {tied}}}}) {
    expect_error<UsageError>([&] { merge(several); }, "rows of tokens", "merge it alone");
  }
}

TEST(TokenRowsOfAnAdapter, AreExportedToPeftAlone) {
  const test::TemporaryFolder folder;
  for (const Consumer consumer : {Consumer::vllm, Consumer::llama_cpp, Consumer::ollama, Consumer::mlx}) {
    const AdapterExport options{.model = tiny, .adapter = tied, .output = folder / "out", .consumer = consumer};
    expect_error<DataError>([&] { check_export(options); }, "trainable_token_indices", "nibble merge");
  }
  const ExportedAdapter kept = check_export({.model = tiny, .adapter = tied, .output = folder / "out", .consumer = Consumer::peft});
  EXPECT_EQ(kept.adapter.token_rows.size(), 3u * 256);
}

}  // namespace
}  // namespace nibble::token_rows_test
