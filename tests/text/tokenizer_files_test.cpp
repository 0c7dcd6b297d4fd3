#include "nibble/text/tokenizer_files.h"

#include "nibble/text/tokenizer.h"
#include "tests/support/files.h"

namespace nibble::text::tokenizer_files_test {
namespace {

using Ids = std::vector<TokenId>;

TEST(TokenizerFiles, TokensAreAddedAndComeBack) {
  const test::TemporaryFolder folder;
  TokenizerFiles files = read_tokenizer_files(test::tiny);
  EXPECT_EQ(files.count("chat_template.jinja"), 1u);
  const std::vector<NewToken> tokens{{.content = "<tool>", .id = 4096}, {.content = "[END]", .id = 4097, .special = false}};
  add_tokens(files, tokens);
  write_tokenizer_files(folder.path(), files);
  const Tokenizer before = Tokenizer::load(test::tiny), after = Tokenizer::load(folder.path());
  EXPECT_EQ(after.id_end(), 4098u);
  EXPECT_EQ(after.encode("<tool>[END]").ids, (Ids{4096, 4097}));
  EXPECT_EQ(after.decode(Ids{4096, 4097}, {.skip_special_tokens = true}), "[END]");
  const std::string text = "What is it? <|im_start|>Zürich, tool END\n";
  EXPECT_EQ(after.encode(text).ids, before.encode(text).ids);
  EXPECT_EQ(after.eos_id(), before.eos_id());
  EXPECT_EQ(test::slurp(folder / "chat_template.jinja"), test::slurp(test::tiny / "chat_template.jinja"));
}

// What names tokens by id in tokenizer_config.json names the new ones too.
TEST(TokenizerFiles, TheConfigsTableOfAddedTokensGrows) {
  TokenizerFiles files = read_tokenizer_files(test::tiny);
  files["tokenizer_config.json"] = R"({"added_tokens_decoder": {"4095": {"content": "<|im_end|>", "special": true}}, "eos_token": "<|im_end|>"})";
  const std::vector<NewToken> tokens{{.content = "<tool>", .id = 4096}};
  add_tokens(files, tokens);
  const Json decoder = parse_json(files["tokenizer_config.json"], "config")["added_tokens_decoder"];
  ASSERT_EQ(decoder.size(), 2u);
  EXPECT_EQ(decoder["4096"]["content"], "<tool>");
}

TEST(TokenizerFiles, AnAdaptersOwnTokenizerCounts) {
  const test::TemporaryFolder folder;
  EXPECT_EQ(tokenizer_folder(test::tiny, {}), test::tiny);
  EXPECT_EQ(tokenizer_folder(test::tiny, folder.path()), test::tiny);
  write_tokenizer_files(folder.path(), read_tokenizer_files(test::tiny));
  EXPECT_EQ(tokenizer_folder(test::tiny, folder.path()), folder.path());
}

}  // namespace
}  // namespace nibble::text::tokenizer_files_test
