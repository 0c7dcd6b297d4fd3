#pragma once

#include "nibble/cli/device_flags.h"
#include "nibble/cli/residency_flags.h"
#include "nibble/cli/sampling_flags.h"
#include "nibble/data/think.h"
#include "nibble/model/generator.h"
#include "nibble/model/sampler.h"
#include "nibble/text/chat_template.h"
#include "nibble/text/stop_texts.h"
#include "nibble/text/tokenizer.h"
#include "nibble/train/run_data.h"

#include <CLI/CLI.hpp>

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace nibble::cli {

using Tokens = std::vector<std::uint32_t>;

// How a chat is put to the model.
struct PromptThinking {
  std::optional<bool> enabled;  // enable_thinking of the chat template; empty leaves it to the template
  data::Think earlier = data::Think::stock;  // the thoughts of earlier turns
};

// What the verbs that answer in text have in common.
struct AnswerFlags {
  std::string model, adapter;
  std::filesystem::path cache_dir;
  DeviceFlags device;
  ResidencyFlags residency;
  std::uint32_t max_new_tokens = 512;
  SamplingFlags sampling;
  std::vector<std::string> stop;
  PromptThinking thinking;

  void add_to(CLI::App& verb);
};

// The parts of a model folder that are not weights.
struct TextFiles {
  ModelConfig config;
  text::Tokenizer tokenizer;
  std::optional<text::ChatTemplate> chat_template;
  std::vector<std::uint32_t> end_tokens;

  // Tokenizer and template are those of the adapter where it has its own; it may be empty.
  TextFiles(const std::string& folder, const std::string& adapter);

  // The chat as tokens, up to where the assistant's answer begins. Throws DataError where the model has no template, UsageError
  // where that knows no thoughts to be treated so.
  Tokens prompt(const text::OrderedJson& messages, const text::OrderedJson& tools, const PromptThinking& thinking) const;

 private:
  TextFiles(ModelConfig model, RunData data);
};

// A message of a chat; what is not UTF-8 in it becomes U+FFFD.
text::OrderedJson message(const char* role, std::string_view content);
// Puts it before the messages, in place of a system message that they begin with.
void set_system(text::OrderedJson& messages, std::string_view content);

struct Answer {
  enum class End { end_token, stop_text, length, full, interrupted };
  std::string text;
  std::size_t new_tokens = 0;
  End end = End::length;
  double prompt_seconds = 0, seconds = 0;  // until the first token is known; of the others

  double tokens_per_second() const;
};
std::string_view name_of(Answer::End end);

// An answer while it is made: token after token goes in, text comes out as soon as it is certain.
class AnswerBuilder {
 public:
  AnswerBuilder(const TextFiles& files, const std::vector<std::string>& stop, std::uint32_t max_new_tokens, std::uint32_t capacity);

  // The piece of text that one more token, already the last of `all`, makes certain.
  std::string push(std::span<const std::uint32_t> all);
  // What is still held back, at the end.
  std::string finish();
  // Why the answer is over; empty while it is not.
  std::optional<Answer::End> end() const { return end_; }
  std::size_t new_tokens() const { return new_tokens_; }

 private:
  const std::vector<std::uint32_t>& end_tokens_;
  text::StreamDecoder decoder_;
  text::StopTexts stops_;
  std::uint32_t max_new_tokens_, capacity_;
  std::size_t new_tokens_ = 0;
  std::optional<Answer::End> end_;
};

// Texts at a time: `most`, or, `as_fit`, as many of these as share a reading of the weights and as half of the memory that is left has
// room for.
struct TextPlaces {
  std::uint32_t most = 1;
  bool as_fit = false;
};

// A model on a device that continues texts.
class TextModel {
 public:
  // Shows on standard error how far loading has come, where that is a terminal.
  TextModel(const TextFiles& files, const AnswerFlags& flags, std::uint32_t capacity, TextPlaces places = {});

  gpu::Device& device() { return device_; }
  Generator& generator() { return generator_; }
  std::uint32_t sequences() const { return generator_.sequences(); }

  // Appends to `text`, the prompt, token after token, and gives each piece of the answer to `show` as soon as it is certain.
  // Ends early where `interrupted` says so.
  Answer answer(Tokens& text, TokenSampler& sampler, const std::function<void(std::string_view)>& show,
                const std::function<bool()>& interrupted = {});

  // Answers all prompts, as many at a time as there are sequences; `done` gets them in the order in which they end, with the
  // prompt's index and all tokens. Prompt i draws with seed + i.
  using Done = std::function<void(std::size_t, const Answer&, const Tokens&)>;
  void answer_all(std::span<const Tokens> prompts, const SamplingOptions& sampling, const Done& done);

 private:
  const TextFiles& files_;
  std::uint32_t max_new_tokens_;
  std::vector<std::string> stop_;
  gpu::Device device_;
  ModelState state_;
  Generator generator_;
};

}  // namespace nibble::cli
