#include "nibble/cli/text_model.h"

#include "nibble/base/error.h"
#include "nibble/cli/cache_flag.h"
#include "nibble/cli/row_flags.h"
#include "nibble/cli/terminal.h"
#include "nibble/data/chat_mask.h"
#include "nibble/model/next_token.h"
#include "nibble/report/progress.h"
#include "nibble/text/utf8.h"
#include "nibble/train/token_choice.h"

#include <algorithm>
#include <chrono>
#include <memory>

namespace nibble::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

ModelState load(gpu::Device& device, const ModelConfig& config, const AnswerFlags& flags) {
  Progress progress(stderr, is_terminal(stderr));
  StateOptions options{.path = flags.device.path(device.info()), .adapter = flags.adapter, .trainable = false,
                       .residency = flags.residency.of(config.num_layers), .stream = flags.residency.stream()};
  if (is_terminal(stderr)) options.progress = [&](double done) { progress.part("Loading", done); };
  return ModelState::load(device, through_cache(flags.model, flags.cache_dir, progress), options);
}

// The driver counts all of the memory, of which others may have some: half of what the model leaves.
std::uint32_t texts_that_fit(const ModelState& state, std::uint32_t capacity, std::uint32_t most) {
  constexpr std::uint32_t where_unknown = 8;
  const std::uint64_t all = state.device().info().memory_bytes, taken = state.device().memory().current;
  if (all == 0) return std::min(most, where_unknown);
  return Generator::texts_that_fit(state, {.capacity = capacity, .sequences = most}, all > taken ? (all - taken) / 2 : 0);
}

}  // namespace

void AnswerFlags::add_to(CLI::App& verb) {
  verb.add_option("--model", model, "Model folder (config.json, tokenizer.json, safetensors) or GGUF file")->required();
  add_cache_option(verb, cache_dir);
  verb.add_option("--adapter", adapter, "PEFT adapter folder");
  verb.add_option("--max-new-tokens", max_new_tokens, "Longest answer")->capture_default_str()->check(CLI::Range(1u, 1u << 30));
  sampling.add_to(verb, "This and the next four come from generation_config.json where it says so; else 0, or 1 with one of the next three");
  verb.add_option("--stop", stop, "End the answer before this text; several may be given");
  verb.add_flag_callback("--thinking", [this] { thinking.enabled = true; }, "Set enable_thinking of the chat template");
  verb.add_flag_callback("--no-thinking", [this] { thinking.enabled = false; }, "Clear it: Qwen3 then answers at once");
  add_think_option(verb, thinking.earlier);
  residency.add_to(verb, ResidencyFlags::Cached::left_out);
  device.add_to(verb, DeviceFlags::AdapterOption::names_lora);
}

TextFiles::TextFiles(const std::string& folder, const std::string& adapter)
    : TextFiles(read_model_config(folder), open_tokenizer({.model = folder, .init_adapter = adapter})) {}

TextFiles::TextFiles(ModelConfig model, RunData data)
    : config(std::move(model)), tokenizer(std::move(data.tokenizer)), chat_template(std::move(data.chat_template)), end_tokens(config.eos_token_ids) {
  if (const auto end = tokenizer.eos_id()) end_tokens.push_back(*end);
}

Tokens TextFiles::prompt(const text::OrderedJson& messages, const text::OrderedJson& tools,
                         const PromptThinking& thinking) const {
  check<DataError>(chat_template.has_value(), "chat", "The model has no chat template; `generate --raw` does without.");
  text::OrderedJson variables = text::OrderedJson::object();
  if (thinking.enabled) variables["enable_thinking"] = *thinking.enabled;
  const data::ChatMask chat(tokenizer, *chat_template, variables, thinking.earlier);
  return tokenizer.encode(chat.prompt({.messages = messages, .tools = tools}), {.add_special_tokens = false}).ids;
}

text::OrderedJson message(const char* role, std::string_view content) {
  return {{"role", role}, {"content", text::replace_broken_utf8(content)}};
}

void set_system(text::OrderedJson& messages, std::string_view content) {
  if (!messages.empty() && messages.front().value("role", "") == "system") messages.erase(0);
  messages.insert(messages.begin(), message("system", content));
}

double Answer::tokens_per_second() const {
  return seconds > 0 && new_tokens > 1 ? static_cast<double>(new_tokens - 1) / seconds : 0.0;
}

std::string_view name_of(Answer::End end) {
  switch (end) {
    case Answer::End::end_token: return "end_token";
    case Answer::End::stop_text: return "stop_text";
    case Answer::End::length: return "max_new_tokens";
    case Answer::End::full: return "context_full";
    case Answer::End::interrupted: return "interrupted";
  }
  return "?";
}

AnswerBuilder::AnswerBuilder(const TextFiles& files, const std::vector<std::string>& stop, std::uint32_t max_new_tokens,
                             std::uint32_t capacity)
    : end_tokens_(files.end_tokens),
      decoder_(files.tokenizer, {.skip_special_tokens = true}),
      stops_(stop),
      max_new_tokens_(max_new_tokens),
      capacity_(capacity) {}

std::string AnswerBuilder::push(std::span<const std::uint32_t> all) {
  ++new_tokens_;
  if (std::find(end_tokens_.begin(), end_tokens_.end(), all.back()) != end_tokens_.end()) {
    end_ = Answer::End::end_token;
    return {};
  }
  const std::string piece = stops_.push(decoder_.push(all.back()));
  if (stops_.stopped()) {
    end_ = Answer::End::stop_text;
  } else if (new_tokens_ == max_new_tokens_) {
    end_ = Answer::End::length;
  } else if (all.size() > capacity_) {
    end_ = Answer::End::full;
  }
  return piece;
}

std::string AnswerBuilder::finish() {
  std::string rest = stops_.push(decoder_.finish());
  return rest + stops_.finish();
}

TextModel::TextModel(const TextFiles& files, const AnswerFlags& flags, std::uint32_t capacity, TextPlaces places)
    : files_(files),
      max_new_tokens_(flags.max_new_tokens),
      stop_(flags.stop),
      device_(flags.device.open()),
      state_(load(device_, files.config, flags)),
      generator_(state_, {.capacity = capacity, .sequences = places.as_fit ? texts_that_fit(state_, capacity, places.most) : places.most}) {}

Answer TextModel::answer(Tokens& text, TokenSampler& sampler, const std::function<void(std::string_view)>& show,
                         const std::function<bool()>& interrupted) {
  AnswerBuilder builder(files_, stop_, max_new_tokens_, generator_.capacity());
  Answer answer;
  const auto put = [&](const std::string& piece) {
    if (piece.empty()) return;
    answer.text += piece;
    show(piece);
  };
  const auto begin = Clock::now();
  std::optional<Answer::End> end;
  while (!end) {
    const std::uint32_t token = next_token(generator_, sampler, text);
    if (builder.new_tokens() == 0) answer.prompt_seconds = seconds_since(begin);
    text.push_back(token);
    put(builder.push(text));
    end = builder.end();
    if (!end && interrupted && interrupted()) end = Answer::End::interrupted;
  }
  put(builder.finish());
  answer.end = *end;
  answer.new_tokens = builder.new_tokens();
  answer.seconds = seconds_since(begin) - answer.prompt_seconds;
  return answer;
}

void TextModel::answer_all(std::span<const Tokens> prompts, const SamplingOptions& sampling, const Done& done) {
  struct Running {
    std::size_t index;
    Tokens text;
    TokenSampler sampler;
    AnswerBuilder builder;
    Answer answer;
    Clock::time_point begin;
  };
  std::vector<std::unique_ptr<Running>> places(generator_.sequences());
  std::size_t next = 0;
  while (true) {
    std::vector<Generator::Text> texts;
    for (std::uint32_t place = 0; place < places.size(); ++place) {
      if (!places[place] && next < prompts.size()) {
        SamplingOptions own = sampling;
        own.seed += next;
        places[place] = std::make_unique<Running>(Running{
            next, prompts[next], TokenSampler(own), AnswerBuilder(files_, stop_, max_new_tokens_, generator_.capacity()), {}, Clock::now()});
        ++next;
      }
      if (places[place]) texts.push_back({place, places[place]->text});
    }
    if (texts.empty()) return;
    std::vector<TokenSampler*> samplers;
    for (const Generator::Text& text : texts) samplers.push_back(&places[text.sequence]->sampler);
    const std::vector<std::uint32_t> tokens = next_tokens(generator_, samplers, texts);
    for (std::size_t i = 0; i < texts.size(); ++i) {
      std::unique_ptr<Running>& place = places[texts[i].sequence];
      Running& r = *place;
      if (r.builder.new_tokens() == 0) r.answer.prompt_seconds = seconds_since(r.begin);
      r.text.push_back(tokens[i]);
      r.answer.text += r.builder.push(r.text);
      if (!r.builder.end()) continue;
      r.answer.text += r.builder.finish();
      r.answer.end = *r.builder.end();
      r.answer.new_tokens = r.builder.new_tokens();
      r.answer.seconds = seconds_since(r.begin) - r.answer.prompt_seconds;
      done(r.index, r.answer, r.text);
      place.reset();
    }
  }
}

}  // namespace nibble::cli
