#pragma once

#include "nibble/io/json.h"
#include "tests/support/program.h"

#include <map>
#include <sstream>

namespace nibble::test {

// The first rows of a shipped file, in a folder of the test.
inline std::filesystem::path some_rows(const TemporaryFolder& folder, const std::string& name, std::size_t count) {
  std::ifstream in(source_path("data/define/" + name));
  std::string text, line;
  for (std::size_t i = 0; i < count && std::getline(in, line); ++i) text += line + "\n";
  return folder.write(name, text);
}

using Arguments = std::map<std::string, std::string>;  // without the dashes; a flag has an empty value

// A run of the program `nibble train` that ends within seconds: 8 updates of rank 4.
struct TinyRun {
  TemporaryFolder folder;
  Arguments arguments{{"model", source_path("models/tiny-qwen3").string()},
                      {"data", some_rows(folder, "train.jsonl", 12).string()},
                      {"valid", some_rows(folder, "valid.jsonl", 4).string()},
                      {"output", (folder / "run").string()},
                      {"batch-size", "3"},
                      {"lora-rank", "4"},
                      {"learning-rate", "0.002"},
                      {"epochs", "2"},
                      {"eval-every", "3"},
                      {"save-every", "2"}};

  std::filesystem::path output() const { return arguments.at("output"); }
  // `changes` win over the arguments.
  std::vector<std::string> command(Arguments changes = {}) const {
    changes.insert(arguments.begin(), arguments.end());
    std::vector<std::string> words = {"train"};
    for (const auto& [name, value] : changes) {
      words.push_back("--" + name);
      if (!value.empty()) words.push_back(value);
    }
    return words;
  }
  ProgramResult run(const Arguments& changes = {}) const { return run_program(NIBBLE_PROGRAM, command(changes)); }
};

inline std::string adapter_bytes(const std::filesystem::path& folder) { return slurp(folder / "adapter_model.safetensors"); }

// The records of metrics.jsonl.
inline std::vector<Json> metrics(const std::filesystem::path& output) {
  std::vector<Json> records;
  std::istringstream lines(slurp(output / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) records.push_back(parse_json(line, "metrics.jsonl"));
  return records;
}

// Without what depends on the machine's speed.
inline std::vector<Json> timeless_metrics(const std::filesystem::path& output) {
  auto records = metrics(output);
  for (Json& record : records) {
    record.erase("tokens_per_second");
    record.erase("memory_bytes");
  }
  return records;
}

// The program's complaint is one line on standard error that holds `parts`, behind what it said before.
template <typename... Parts>
void expect_complaint(const ProgramResult& result, int code, const Parts&... parts) {
  EXPECT_EQ(result.code, code) << result.err;
  EXPECT_EQ(result.signal, 0);
  const std::size_t start = ("\n" + result.err).rfind("\nnibble: ");
  ASSERT_NE(start, result.err.npos) << result.err;
  const std::string line = result.err.substr(start);
  EXPECT_EQ(line.find('\n'), line.size() - 1) << line;
  for (const std::string& part : {std::string(parts)...}) EXPECT_NE(line.find(part), line.npos) << part << " is not in: " << line;
}

}  // namespace nibble::test
