#include "nibble/io/gguf_pre.h"

#include <fmt/format.h>

#include <array>

namespace nibble {
namespace {

// The patterns are those of the families' published tokenizer.json files.
constexpr const char* qwen2_words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* llama3_words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* gpt2_words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

Json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

Json split(const char* pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

Json sequence(const std::vector<Json>& steps) { return {{"type", "Sequence"}, {"pretokenizers", steps}}; }

Json qwen2() { return sequence({split(qwen2_words), byte_level(false)}); }
Json llama3() { return sequence({split(llama3_words), byte_level(false)}); }
Json gpt2() { return byte_level(true); }
Json smollm() { return sequence({{{"type", "Digits"}, {"individual_digits", true}}, byte_level(true)}); }

// What llama.cpp does with a file that names none: punctuation, words, digits in threes, one after the other.
Json unnamed() {
  return sequence({split(R"([\p{P}\$\+<=>\^~\|]+)"), split(gpt2_words), split(R"(\p{N}+)"), split("[0-9][0-9][0-9]"),
                   byte_level(false)});
}

constexpr std::array pres{
    GgufPre{"qwen2", qwen2, true, false, false},      GgufPre{"llama-bpe", llama3, false, true, true},
    GgufPre{"gpt-2", gpt2, false, false, false},      GgufPre{"smollm", smollm, false, false, false},
    GgufPre{"default", unnamed, false, false, false},
};

constexpr std::array<std::pair<std::string_view, std::string_view>, 4> other_names{
    {{"llama3", "llama-bpe"}, {"llama-v3", "llama-bpe"}, {"deepseek-r1-qwen", "qwen2"}, {"gpt2", "gpt-2"}}};

// What a step does, without keys that change no token.
Json essence(const Json& step) {
  if (!step.is_object()) return step;
  if (step.value("type", "") == "Sequence" && step.contains("pretokenizers") && step["pretokenizers"].is_array()) {
    Json steps = Json::array();
    for (const Json& each : step["pretokenizers"]) steps.push_back(essence(each));
    return steps.size() == 1 ? steps[0] : steps;
  }
  Json result = step;
  result.erase("trim_offsets");
  if (step.value("type", "") == "ByteLevel" && !step.contains("use_regex")) result["use_regex"] = true;
  return result;
}

}  // namespace

const GgufPre* gguf_pre(std::string_view name) {
  for (const auto& [other, usual] : other_names) {
    if (name == other) name = usual;
  }
  for (const GgufPre& pre : pres) {
    if (pre.name == name) return &pre;
  }
  return nullptr;
}

std::string gguf_pre_names() {
  std::string names;
  for (const GgufPre& pre : pres) names += fmt::format("{}\"{}\"", names.empty() ? "" : ", ", pre.name);
  return names;
}

const GgufPre* gguf_pre_of(const Json& tokenizer) {
  if (!tokenizer.contains("pre_tokenizer")) return nullptr;
  const Json wanted = essence(tokenizer["pre_tokenizer"]);
  for (const GgufPre& pre : pres) {
    if (essence(pre.pre_tokenizer()) == wanted) return &pre;
  }
  return nullptr;
}

}  // namespace nibble
