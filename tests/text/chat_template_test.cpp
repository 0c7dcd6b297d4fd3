#include "nibble/text/chat_template.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "nibble/base/error.h"

namespace nibble::text::chat_template_test {
namespace {

class ChatTemplateFolder : public ::testing::Test {
 protected:
  ChatTemplateFolder() : folder_(fs::temp_directory_path() / ("nibble_chat_template_" + std::to_string(getpid()))) {
    fs::remove_all(folder_);
    fs::create_directories(folder_ / "additional_chat_templates");
  }
  ~ChatTemplateFolder() override { fs::remove_all(folder_); }

  void write(const std::string& name, const std::string& text) const { std::ofstream(folder_ / name) << text; }
  std::string render(const OrderedJson& tools = nullptr, const OrderedJson& variables = OrderedJson::object()) const {
    const auto chat = ChatTemplate::load(folder_);
    const ChatRequest request{.messages = OrderedJson::parse(R"([{"role": "user", "content": "hi"}])"),
                              .tools = tools,
                              .variables = variables};
    return chat ? chat->render(request).text : "no template";
  }

  fs::path folder_;
};

const OrderedJson some_tools = OrderedJson::parse(R"([{"z": 1, "a": 2}])");

TEST_F(ChatTemplateFolder, HasNone) {
  EXPECT_EQ(render(), "no template");
  write("tokenizer_config.json", R"({"eos_token": "</s>", "chat_template": null})");
  EXPECT_EQ(render(), "no template");
}

TEST_F(ChatTemplateFolder, TakesTheStringOfTheConfig) {
  write("tokenizer_config.json",
        R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>",
            "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token is defined }}"})");
  EXPECT_EQ(render(), "<s>hi</s>False");
  EXPECT_EQ(render(nullptr, {{"eos_token", "!"}}), "<s>hi!False");
}

TEST_F(ChatTemplateFolder, PicksByName) {
  write("tokenizer_config.json",
        R"({"chat_template": [{"name": "default", "template": "plain"},
                              {"name": "tool_use", "template": "{{ tools | tojson }}"}]})");
  EXPECT_EQ(render(), "plain");
  EXPECT_EQ(render(some_tools), R"([{"z": 1, "a": 2}])");
  EXPECT_EQ(render(OrderedJson::array()), "plain");
}

TEST_F(ChatTemplateFolder, FilesWin) {
  write("tokenizer_config.json", R"({"chat_template": "config"})");
  write("chat_template.jinja", "file {{ tools is none }}");
  EXPECT_EQ(render(), "file True");
  EXPECT_EQ(render(some_tools), "file False");
  write("additional_chat_templates/tool_use.jinja", "more");
  EXPECT_EQ(render(some_tools), "more");
}

TEST_F(ChatTemplateFolder, FaultsNameTheFile) {
  const auto error_of = [&] {
    try {
      render();
    } catch (const DataError& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  write("chat_template.jinja", "\n{% if %}");
  EXPECT_NE(error_of().find("line 2: "), std::string::npos);
  EXPECT_NE(error_of().find("chat_template.jinja"), std::string::npos);
  fs::remove(folder_ / "chat_template.jinja");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "x"}]})");
  EXPECT_NE(error_of().find("no chat template named \"default\""), std::string::npos);
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag"}]})");
  EXPECT_NE(error_of().find("needs a \"name\" and a \"template\""), std::string::npos);
  write("tokenizer_config.json", R"({"chat_template": 3})");
  EXPECT_NE(error_of().find("is a string or a list"), std::string::npos);
}

TEST(ChatTemplate, GivesTheGeneratedSpans) {
  const auto chat = ChatTemplate::parse(
      "{% for m in messages %}[{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
      "{% else %}{{ m.content }}{% endif %}]{% endfor %}");
  const auto messages = OrderedJson::parse(
      R"([{"role": "user", "content": "é"}, {"role": "assistant", "content": "yes"}])");
  const RenderedChat rendered = chat.render({.messages = messages});
  EXPECT_EQ(rendered.text, "[é][yes]");
  EXPECT_EQ(rendered.generated, (std::vector<ByteSpan>{{5, 8}}));
}

TEST(ChatTemplate, RefusesWhatAMessageCannotBe) {
  const auto chat = ChatTemplate::parse("{{ messages }}");
  std::string deep(200, '[');
  deep += std::string(200, ']');
  EXPECT_THROW(chat.render({.messages = OrderedJson::parse(deep)}), DataError);
  EXPECT_THROW(chat.render({.messages = OrderedJson::parse("[18446744073709551615]")}), DataError);
}

}  // namespace
}  // namespace nibble::text::chat_template_test
