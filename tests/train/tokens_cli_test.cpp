#include <algorithm>
#include <cmath>

#include "nibble/base/error.h"
#include "nibble/io/safetensors.h"
#include "nibble/io/shards.h"
#include "nibble/text/tokenizer.h"
#include "nibble/weights/peft.h"
#include "tests/train/tiny_run.h"

namespace nibble::tokens_cli_test {
namespace {

namespace fs = std::filesystem;
using test::TinyRun;

constexpr std::uint32_t known = 4096, rows = 4104, hidden = 256;

std::vector<std::byte> read_bytes(const SafetensorsFile& file, const TensorInfo& tensor) {
  std::vector<std::byte> bytes(tensor.bytes);
  file.read(tensor, 0, bytes);
  return bytes;
}

// The tiny model with rows in its table that no token has.
void write_padded_model(const fs::path& to) {
  fs::create_directories(to);
  for (const auto& entry : fs::directory_iterator(test::tiny)) {
    if (entry.path().extension() != ".safetensors") fs::copy(entry.path(), to / entry.path().filename());
  }
  Json config = read_json_file(test::tiny / "config.json");
  config["vocab_size"] = rows;
  std::ofstream(to / "config.json") << config;
  const SafetensorsFile file(test::tiny / "model.safetensors");
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : file.tensors()) {
    specs.push_back({name, *tensor.dtype, tensor.shape});
    if (name == embedding_tensor_name) specs.back().shape[0] = rows;
  }
  SafetensorsWriter writer(to / "model.safetensors", specs);
  for (const TensorSpec& spec : writer.tensors()) {
    std::vector<std::byte> bytes = read_bytes(file, file.at(spec.name));
    bytes.resize(bytes_of(spec));
    writer.append(bytes);
  }
  writer.finish();
}

// Runs of the program on that model, with rows that have two tokens which it does not know.
class TrainNewTokens : public testing::Test {
 protected:
  TrainNewTokens() {
    write_padded_model(model());
    std::string text;
    for (const char* what : {"rain", "snow", "wind", "heat", "fog", "hail"}) {
      text += fmt::format(R"({{"messages": [{{"role": "user", "content": "weather {0}"}}, {{"role": "assistant", "content": "<tool>{0}</tool>"}}]}})", what) + "\n";
    }
    tiny_.arguments["model"] = model().string();
    tiny_.arguments["data"] = tiny_.folder.write("tools.jsonl", text).string();
    tiny_.arguments.erase("valid");
    tiny_.arguments.erase("epochs");
    tiny_.arguments["max-steps"] = "6";
    tiny_.arguments["warmup-ratio"] = "0";
  }

  fs::path model() const { return tiny_.folder / "model"; }
  fs::path output() const { return tiny_.output(); }
  test::ProgramResult train(const test::Arguments& changes = {}, const std::vector<std::string>& tokens = {"<tool>", "</tool>"}) const {
    auto words = tiny_.command(changes);
    words.push_back("--train-tokens");
    words.insert(words.end(), tokens.begin(), tokens.end());
    return test::run_program(NIBBLE_PROGRAM, words);
  }
  test::ProgramResult run(const std::vector<std::string>& words) const { return test::run_program(NIBBLE_PROGRAM, words); }
  double loss_of(const std::vector<std::string>& more) const {
    std::vector<std::string> words{"eval", "--json", "--compute", "f32", "--data", tiny_.arguments.at("data")};
    words.insert(words.end(), more.begin(), more.end());
    const auto result = run(words);
    EXPECT_EQ(result.code, 0) << result.err;
    return result.code == 0 ? parse_json(result.out, "eval")["eval_loss"].get<double>() : NAN;
  }

  TinyRun tiny_;
};

std::vector<std::uint32_t> ids_in(const fs::path& folder, const std::string& text) { return text::Tokenizer::load(folder).encode(text).ids; }

TEST_F(TrainNewTokens, AreAddedLearntAndSavedWithTheirTokenizer) {
  const auto result = train();
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("2 trained in the embedding, to which the head is tied; new: <tool> = 4096, </tool> = 4097"), std::string::npos) << result.err;
  EXPECT_EQ(read_json_file(output() / "adapter_config.json")["trainable_token_indices"], Json::array({known, known + 1}));
  for (const fs::path& folder : {output(), output() / "checkpoint-6"}) {
    EXPECT_EQ(ids_in(folder, "a<tool>").back(), known);
    EXPECT_EQ(ids_in(folder, "a</tool>").back(), known + 1);
  }
  EXPECT_EQ(ids_in(model(), "a</tool>").back() < known, true);
  EXPECT_TRUE(fs::exists(output() / "chat_template.jinja"));

  // Both began at the mean of the tokens that were known, and have gone different ways.
  const LoraAdapter adapter = load_lora_adapter(output(), read_model_config(model()));
  const auto table = SafetensorsFile(test::tiny / "model.safetensors").read_as_f32(embedding_tensor_name);
  double far = 0, apart = 0;
  for (std::uint32_t c = 0; c < hidden; ++c) {
    double mean = 0;
    for (std::uint32_t row = 0; row < known; ++row) mean += table[row * hidden + c];
    for (std::uint32_t row = 0; row < 2; ++row) far = std::max(far, std::fabs(adapter.token_rows[row * hidden + c] - mean / known));
    apart = std::max(apart, std::fabs(double{adapter.token_rows[c]} - adapter.token_rows[hidden + c]));
  }
  EXPECT_GT(far, 1e-3);
  EXPECT_LE(far, 6 * 0.002 * 1.01) << "six updates go no further than so many learning rates";
  EXPECT_GT(apart, 1e-3);

  // The loss with the adapter is that of its own tokenizer and rows.
  const double own = loss_of({"--model", model().string(), "--adapter", output().string()});
  const double first = test::metrics(output()).front()["loss"].get<double>();
  EXPECT_LT(own, first);
  const auto answer = run({"generate", "--model", model().string(), "--adapter", output().string(), "--prompt", "<tool>", "--raw", "--json", "--max-new-tokens", "2"});
  ASSERT_EQ(answer.code, 0) << answer.err;
  EXPECT_EQ(parse_json(answer.out, "generate")["prompt_tokens"], 1);
  const auto info = run({"info", "--adapter", output().string(), "--model", model().string()});
  EXPECT_NE(info.out.find("2 trained in the embedding, 512 parameters"), std::string::npos) << info.out << info.err;
}

TEST_F(TrainNewTokens, AreMergedIntoTheTableAndTheTokenizer) {
  ASSERT_EQ(train().code, 0);
  const fs::path merged = tiny_.folder / "merged";
  const auto result = run({"merge", "--model", model().string(), "--adapter", output().string(), "--output", merged.string(), "--dtype", "f32", "--compute",
                           "f32", "--valid", tiny_.arguments["data"]});
  ASSERT_EQ(result.code, 0) << result.err;
  const double own = loss_of({"--model", model().string(), "--adapter", output().string()});
  const auto at = result.out.find("original weights, ");
  ASSERT_NE(at, std::string::npos) << result.out;
  EXPECT_NEAR(std::stod(result.out.substr(at + 18)), own, 1e-4) << "onto the weights in NF4 it is what the adapter has";
  EXPECT_EQ(ids_in(merged, "</tool>").at(0), known + 1);
  const LoraAdapter adapter = load_lora_adapter(output(), read_model_config(model()));
  const auto before = SafetensorsFile(model() / "model.safetensors").read_as_f32(embedding_tensor_name);
  const auto after = SafetensorsFile(merged / "model.safetensors").read_as_f32(embedding_tensor_name);
  for (std::size_t i = 0; i < before.size(); ++i) {
    const bool trained = i / hidden == known || i / hidden == known + 1;
    ASSERT_EQ(after[i], trained ? adapter.token_rows[i - std::size_t{known} * hidden] : before[i]) << i;
  }
  const fs::path gguf = tiny_.folder / "merged.gguf";
  const auto file = run({"merge", "--model", model().string(), "--adapter", output().string(), "--output", gguf.string(), "--format", "gguf", "--dtype", "f32"});
  ASSERT_EQ(file.code, 0) << file.err;
  EXPECT_EQ(ids_in(gguf, "</tool>").at(0), known + 1);
  test::expect_complaint(run({"merge", "--model", model().string(), "--adapter", output().string() + ":0.5", "--output", (tiny_.folder / "other").string()}), 2,
                         "rows of tokens", "merge it alone");
}

TEST_F(TrainNewTokens, AreResumedToTheSameBytes) {
  ASSERT_EQ(train().code, 0);
  const std::string whole = test::adapter_bytes(output()), moments = test::slurp(output() / "checkpoint-6/optimizer.safetensors");
  EXPECT_NE(moments.find(fmt::format("exp_avg_sq.{}", peft_token_rows_name)), std::string::npos);
  fs::remove_all(output() / "checkpoint-6");
  const auto resumed = train({{"resume", "auto"}});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_TRUE(test::adapter_bytes(output()) == whole);
  EXPECT_TRUE(test::slurp(output() / "checkpoint-6/optimizer.safetensors") == moments);
  test::expect_complaint(train({{"resume", "auto"}}, {"<tool>"}), 2, "train_tokens");
  // config.toml says it all.
  const fs::path again = tiny_.folder / "again";
  const auto repeated = run({"train", "--config", (output() / "config.toml").string(), "--output", again.string()});
  ASSERT_EQ(repeated.code, 0) << repeated.err;
  EXPECT_TRUE(test::adapter_bytes(again) == whole);
}

// One goes on with the tokens that the adapter has, and adds others, on fresh rows and on some of the base's.
TEST_F(TrainNewTokens, OfAnAdapterGoOnAndMoreAreAdded) {
  ASSERT_EQ(train({}, {"<tool>"}).code, 0);
  const fs::path second = tiny_.folder / "second";
  const test::Arguments changes{{"init-adapter", output().string()}, {"output", second.string()}, {"max-steps", "2"}, {"plain-tokens", ""},
                                {"tokens-learning-rate", "0.004"}};
  const auto result = train(changes, {"[END]", "17"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(read_json_file(second / "adapter_config.json")["trainable_token_indices"], Json::array({known, known + 1, 17}));
  const auto tokenizer = text::Tokenizer::load(second);
  EXPECT_EQ(tokenizer.token_to_id("<tool>"), known);
  EXPECT_EQ(tokenizer.token_to_id("[END]"), known + 1);
  EXPECT_TRUE(tokenizer.is_special(known));
  EXPECT_FALSE(tokenizer.is_special(known + 1));
  const LoraAdapter before = load_lora_adapter(output(), read_model_config(model())), after = load_lora_adapter(second, read_model_config(model()));
  EXPECT_NE(std::vector<float>(after.token_rows.begin(), after.token_rows.begin() + hidden), before.token_rows);
  // Without a name the tokens that the adapter has still learn.
  const auto plain = tiny_.run({{"init-adapter", output().string()}, {"output", second.string()}, {"max-steps", "2"}});
  ASSERT_EQ(plain.code, 0) << plain.err;
  EXPECT_EQ(ids_in(second, "<tool>").at(0), known);
}

// A head of its own keeps its rows, as in PEFT, unless they are asked for.
TEST_F(TrainNewTokens, OfAnUntiedHeadAreTrainedWhereThatIsSaid) {
  const fs::path llama = tiny_.folder / "llama";
  fs::copy(test::source_path("tests/golden/llama/model"), llama);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) fs::copy(test::tiny / name, llama / name);
  const test::Arguments changes{{"model", llama.string()}, {"max-steps", "2"}};
  const auto alone = train(changes, {"<|im_end|>", "17"});
  ASSERT_EQ(alone.code, 0) << alone.err;
  EXPECT_NE(alone.err.find("2 trained in the embedding; the head's rows stay (--train-tokens-head)"), std::string::npos) << alone.err;
  EXPECT_EQ(read_json_file(output() / "adapter_config.json")["trainable_token_indices"], Json::array({4095, 17}));
  test::Arguments with_head = changes;
  with_head["train-tokens-head"] = "";
  const auto result = train(with_head, {"<|im_end|>", "17"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(read_json_file(output() / "adapter_config.json")["trainable_token_indices"], (Json{{"embed_tokens", {4095, 17}}, {"lm_head", {4095, 17}}}));
  const LoraAdapter adapter = load_lora_adapter(output(), read_model_config(llama));
  const auto head = SafetensorsFile(llama / "model.safetensors").read_as_f32(head_tensor_name);
  EXPECT_NE(adapter.head_rows[0], head[std::size_t{4095} * 192]);
  EXPECT_NEAR(adapter.head_rows[0], head[std::size_t{4095} * 192], 2 * 0.002 * 1.01);
  test::Arguments on_host = changes;
  on_host["embedding-memory"] = "host";
  test::expect_complaint(train(on_host, {"17"}), 2, "--embedding-memory");
}

TEST_F(TrainNewTokens, AreNotWrittenWhereTheyWouldBeLost) {
  ASSERT_EQ(train().code, 0);
  const auto written_for = [&](const std::string& consumer) {
    return run({"export", "--for", consumer, "--model", model().string(), "--adapter", output().string(), "--output", (tiny_.folder / ("for " + consumer)).string()});
  };
  for (const char* consumer : {"vllm", "llama.cpp", "ollama", "mlx"}) {
    test::expect_complaint(written_for(consumer), 1, "trainable_token_indices", consumer, "nibble merge");
  }
  ASSERT_EQ(written_for("peft").code, 0);
  EXPECT_TRUE(test::adapter_bytes(tiny_.folder / "for peft") == test::adapter_bytes(output()));
  EXPECT_EQ(ids_in(tiny_.folder / "for peft", "<tool>").at(0), known);
}

TEST_F(TrainNewTokens, WhatCannotBeTrainedIsRefused) {
  test::expect_complaint(train({}, {"4104"}), 2, "4104", "4104 rows");
  test::expect_complaint(train({}, {"<a>", "<a>"}), 2, "<a>", "twice");
  test::expect_complaint(train({}, {"a", "b", "<1>", "<2>", "<3>", "<4>", "<5>", "<6>", "<7>", "<8>", "<9>"}), 2, "<9>", "none left", "resize_token_embeddings");
  test::expect_complaint(train({{"train-head", ""}}), 2, "--train-head", "leave one of the two out");
  test::expect_complaint(tiny_.run({{"plain-tokens", ""}}), 2, "--train-tokens");
  test::expect_complaint(tiny_.run({{"tokens-learning-rate", "1"}}), 2, "--train-tokens");
  test::expect_complaint(train({{"model", test::tiny.string()}}), 2, "<tool>", "none left");
  EXPECT_FALSE(fs::exists(output()));
  // Tokens that it knows can be, in any model.
  const auto result = train({{"model", test::tiny.string()}, {"max-steps", "1"}}, {"<|im_start|>", "7"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_FALSE(fs::exists(output() / "tokenizer.json")) << "the model's own tokenizer is the adapter's";
}

}  // namespace
}  // namespace nibble::tokens_cli_test
