#include "nibble/io/gguf.h"
#include "tests/cli/run_program.h"

namespace nibble::export_test {
namespace {

using test::run_nibble;

class ExportVerb : public testing::Test {
 protected:
  test::ProgramResult run(const std::string& consumer, std::vector<std::string> more = {},
                          const std::string& model = test::source_path("models/tiny-qwen3")) const {
    more.insert(more.begin(), {"export", "--for", consumer, "--model", model, "--adapter",
                               test::source_path("tests/golden/tiny/adapter_nonzero"), "--output", output_});
    return run_nibble(more);
  }

  test::TemporaryFolder folder_;
  std::string output_ = folder_ / "out";
};

TEST_F(ExportVerb, WritesEachConsumersFiles) {
  const std::map<std::string, std::vector<std::string>> files{
      {"peft", {"README.md", "adapter_config.json", "adapter_model.safetensors"}},
      {"vllm", {"README.md", "adapter_config.json", "adapter_model.safetensors"}},
      {"ollama", {"Modelfile", "adapter.gguf"}},
      {"mlx", {"adapter_config.json", "adapters.safetensors"}}};
  for (const auto& [consumer, expected] : files) {
    const auto result = run(consumer, {"--overwrite"});
    ASSERT_EQ(result.code, 0) << result.err;
    EXPECT_TRUE(result.out.starts_with(output_ + ": rank 8, scaling 2, for " + consumer + "\n")) << result.out;
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(output_)) found.push_back(entry.path().filename());
    std::sort(found.begin(), found.end());
    EXPECT_EQ(found, expected);
  }
  fs::remove_all(output_);
  ASSERT_EQ(run("llama.cpp").code, 0);
  EXPECT_EQ(GgufFile(output_).tensors().size(), 56);
  const auto again = run("llama.cpp");
  EXPECT_EQ(again.code, 2);
  EXPECT_NE(again.err.find("--overwrite"), std::string::npos) << again.err;
}

TEST_F(ExportVerb, ModelfileHasTheTemplateThatTheModelHas) {
  ASSERT_EQ(run("ollama", {"--from", "qwen3:4b"}).code, 0);
  EXPECT_EQ(test::slurp(fs::path(output_) / "Modelfile"),
            "FROM qwen3:4b\nADAPTER ./adapter.gguf\n"
            "TEMPLATE \"\"\"{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end "
            "}}<|im_start|>assistant\n\"\"\"\n"
            "PARAMETER stop \"<|im_end|>\"\n");
}

TEST_F(ExportVerb, ModelfileTakesLlamasFormAndGuessesNoOther) {
  const std::string model = folder_ / "model";
  fs::copy(test::source_path("models/tiny-qwen3"), model);
  const auto with_template = [&](const std::string& text) {
    std::ofstream(fs::path(model) / "chat_template.jinja") << text;
    const auto result = run("ollama", {"--overwrite"}, model);
    EXPECT_EQ(result.code, 0) << result.err;
    return result.out + test::slurp(fs::path(output_) / "Modelfile");
  };
  const std::string llama3 = with_template(
      "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + "
      "m.content + '<|eot_id|>' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}");
  EXPECT_NE(
      llama3.find("{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n\"\"\"\nPARAMETER stop \"<|eot_id|>\"\n"),
      std::string::npos)
      << llama3;
  const std::string other =
      with_template("{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}{% endfor %}");
  EXPECT_EQ(other.find("TEMPLATE \""), std::string::npos) << other;
  EXPECT_NE(other.find("has no TEMPLATE"), std::string::npos) << other;
  EXPECT_NE(other.find("FROM " + model + "\n"), std::string::npos) << other;
}

TEST_F(ExportVerb, RefusesByName) {
  EXPECT_NE(run("exllama").err.find("--for"), std::string::npos);
  const auto from = run("mlx", {"--from", "x"});
  EXPECT_EQ(from.code, 2);
  EXPECT_NE(from.err.find("--from"), std::string::npos) << from.err;
  const auto two_lines = run("ollama", {"--from", "qwen3:4b\nRUN x"});
  EXPECT_EQ(two_lines.code, 2);
  EXPECT_NE(two_lines.err.find("line break"), std::string::npos) << two_lines.err;
  EXPECT_FALSE(fs::exists(output_));
}

}  // namespace
}  // namespace nibble::export_test
