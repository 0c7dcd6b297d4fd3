#include "nibble/io/json.h"
#include "tests/cli/run_program.h"
#include "tests/support/environment.h"

namespace nibble::doctor_test {
namespace {

using test::run_nibble;

TEST(Doctor, EveryPathOfThisAdapterIsCorrect) {
  const auto result = run_nibble({"doctor", "--gpu", "0", "--json"});
  EXPECT_EQ(result.code, 0) << result.out << result.err;
  const Json report = parse_json(result.out, "output");
  ASSERT_EQ(report["adapters"].size(), 1u);
  const Json& adapter = report["adapters"][0];
  EXPECT_EQ(adapter["paths"].size(), (adapter["f16"] ? 2u : 1u) + (adapter["subgroup_matrices"].empty() ? 0u : 1u));
  int chosen = 0;
  for (const Json& path : adapter["paths"]) {
    EXPECT_TRUE(path["passed"]) << path;
    EXPECT_GT(path["gflops"], 0) << path;
    EXPECT_EQ(path["checks"].size(), path["compute"] == "f32" ? 3u : 5u) << path;
    chosen += path["chosen"] ? 1 : 0;
  }
  EXPECT_EQ(chosen, 1);
}

TEST(Doctor, SeesAWrongKernel) {
  const test::TemporaryFolder folder;
  std::filesystem::copy(test::source_path("nibble/kernels"), folder.path(), std::filesystem::copy_options::recursive);
  for (const std::string name : {"product_lanes.wgsl", "product_nn.wgsl", "product_nn_staged.wgsl"}) {
    std::string text = test::slurp(folder / name);
    const std::string factor = "params.scale *";
    ASSERT_NE(text.find(factor), text.npos) << name;
    text.replace(text.find(factor), factor.size(), "1.001 * params.scale *");
    folder.write(name, text);
  }
  const test::EnvironmentVariable kernels("NIBBLE_WGSL_DIR", folder.path().string());
  const auto result = run_nibble({"doctor", "--gpu", "0"});
  EXPECT_EQ(result.code, 3) << result.out << result.err;
  EXPECT_NE(result.out.find("WRONG"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("product dy W, error: 0.00"), std::string::npos) << result.out;
}

TEST(Doctor, SaysWhatToInstallWithoutAnAdapter) {
  const test::EnvironmentVariable none("VK_DRIVER_FILES", "/nowhere.json");
  const auto result = run_nibble({"doctor"});
  EXPECT_EQ(result.code, 3);
  EXPECT_EQ(result.out, "");
  EXPECT_NE(result.err.find("mesa-vulkan-drivers"), std::string::npos) << result.err;
}

TEST(Doctor, RefusesAnUnknownAdapter) {
  const auto result = run_nibble({"doctor", "--gpu", "no such card"});
  EXPECT_EQ(result.code, 2) << result.err;
  EXPECT_NE(result.err.find("No adapter fits \"no such card\""), std::string::npos) << result.err;
}

TEST(Usage, UnknownWordsGetAHint) {
  const auto refuses = [](const std::vector<std::string>& arguments, const std::string& sentence) {
    const auto result = run_nibble(arguments);
    EXPECT_EQ(result.code, 2);
    EXPECT_EQ(result.out, "");
    EXPECT_EQ(result.err, "nibble: " + sentence + "\n");
  };
  refuses({"docter"}, "There is no verb \"docter\"; did you mean doctor? See: nibble --help");
  refuses({"xyzzy"}, "There is no verb \"xyzzy\". See: nibble --help");
  refuses({"tokenize", "--modle", "x"}, "nibble tokenize has no option --modle; did you mean --model? See: nibble tokenize --help");
  refuses({"train", "--learning_rate=1"},
          "nibble train has no option --learning_rate=1; did you mean --learning-rate? See: nibble train --help");
  refuses({"train", "--steps", "5"}, "nibble train has no option --steps; did you mean --max-steps? See: nibble train --help");
  refuses({"tokenize"}, "--model is required. See: nibble tokenize --help");
  refuses({"doctor", "now"}, "nibble doctor does not take the word \"now\". See: nibble doctor --help");
}

TEST(Usage, ValuesThatDoNotFitAreToldOf) {
  const auto refuses = [](const std::vector<std::string>& arguments, const std::string& sentence) {
    const auto result = run_nibble(arguments);
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_NE(result.err.find(sentence), std::string::npos) << result.err;
  };
  const test::TemporaryFolder folder;
  const auto train = [&](const std::string& option, const std::string& value) {
    return std::vector<std::string>{"train", "--model", test::source_path("models/tiny-qwen3"), "--data", test::source_path("data/define/valid.jsonl"),
                                    "--output", folder.path() / "out", option, value};
  };
  refuses(train("--max-steps", "1e9"), "--max-steps: 1e9 is no whole number from 0 on");
  refuses(train("--seed", "99999999999999999999999"), "--seed: 99999999999999999999999 is too large");
  refuses({"generate", "--model", test::source_path("models/tiny-qwen3"), "--prompt", "a", "--top-k", "99999999999"},
          "--top-k: 99999999999 is no number, or one that is too large");
  refuses(train("--vram-limit", "10"), "the limit is 10 bytes.");
  refuses(train("--learning-rate", "1e-4x"), "--learning-rate: 1e-4x is no finite number");
  for (const std::string epsilon : {"0", "1e-60", "2"}) refuses(train("--adam-epsilon", epsilon), "--adam-epsilon: " + epsilon + " cannot be divided by");
  refuses(train("--target-modules", "foo.*"), "[--target-modules] No projection of the 4 layers is left");
  refuses(train("--layers-to-transform", "99"), "[--layers-to-transform] Layer 99 is named, but the model has 4");
  refuses(train("--init-lora-weights", "foo"), "\"foo\" is no start of an adapter; give true or gaussian");
  refuses(train("--config", folder.write("twice.toml", "max-steps = 3\nlora-rank = 4\nmax-steps = 5\n")), "twice.toml:3: \"max-steps\" stands in line 1 already");
  for (const std::string size : {"-5", "5XB"}) {
    refuses({"merge", "--model", test::source_path("models/tiny-qwen3"), "--output", folder.path() / "merged", "--max-shard-size", size},
            size + " is no size; give one as 5GB or 2GiB");
  }
}

TEST(Usage, HelpListsEachVerbOnALine) {
  const auto help = run_nibble({"--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_NE(help.out.find("\n  doctor     Says what each GPU can do"), std::string::npos) << help.out;
  const auto none = run_nibble({});
  EXPECT_EQ(none.code, 2);
  EXPECT_EQ(none.out, "");
  EXPECT_EQ(none.err, help.out);
}

}  // namespace
}  // namespace nibble::doctor_test
