#include "nibble/text/regex.h"

#include <pcre2.h>

#include <cstdlib>

#include "nibble/base/error.h"
#include "nibble/text/utf8.h"

namespace nibble::text {
namespace {

constexpr std::size_t pattern_cap = 65536;               // bytes
constexpr std::size_t jit_stack_start = 32 * 1024;       // bytes
constexpr std::size_t jit_stack_cap = 16 * 1024 * 1024;  // bytes

std::string pcre2_message(int error) {
  PCRE2_UCHAR text[256];
  if (pcre2_get_error_message(error, text, sizeof text) < 0) return fmt::format("error {}", error);
  return reinterpret_cast<const char*>(text);
}

// A pattern as errors show it: short, so that a hostile file cannot fill a screen.
std::string shown(std::string_view pattern) {
  constexpr std::size_t longest = 120;
  if (pattern.size() <= longest) return std::string(pattern);
  return replace_broken_utf8(pattern.substr(0, longest)) + "...";
}

}  // namespace

bool pcre2_knows_unicode_16() {
  static const bool knows = [] {
    char version[64] = {};  // "14.0.0"
    pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, version);
    return std::atoi(version) >= 16;
  }();
  return knows;
}

struct Regex::Code {
  pcre2_code* compiled = nullptr;
  bool jit = false;
  std::string pattern;  // as the file has it
  std::string where;

  Code() = default;
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(compiled); }
};

Regex::Regex(std::string_view pattern, std::string where) {
  check<DataError>(pattern.size() <= pattern_cap, where, "The pattern has {} bytes; at most {} are allowed.",
                   pattern.size(), pattern_cap);
  const std::string translated = translate_oniguruma(pattern, where);
  auto code = std::make_shared<Code>();
  code->pattern = pattern;
  code->where = std::move(where);
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  // Oniguruma's ^ and $ always match at every line.
  const std::uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  PCRE2_SIZE offset = 0;
  code->compiled = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), options, &error,
                                 &offset, context.get());
  check<DataError>(code->compiled != nullptr, code->where, "The pattern \"{}\" is not valid: {}.", shown(pattern),
                   pcre2_message(error));
  code->jit = pcre2_jit_compile(code->compiled, PCRE2_JIT_COMPLETE) == 0;
  code_ = std::move(code);
}

Regex Regex::literal(std::string_view text, std::string where) {
  std::string escaped;
  for (const char c : text) {
    if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) escaped.push_back('\\');
    escaped.push_back(c);
  }
  return Regex(escaped, std::move(where));
}

struct Matcher::Scratch {
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* stack = nullptr;

  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

Matcher::Matcher(const Regex& regex) : code_(regex.code_), scratch_(std::make_unique<Scratch>()) {
  scratch_->data = pcre2_match_data_create(1, nullptr);
  scratch_->context = pcre2_match_context_create(nullptr);
  check(scratch_->data != nullptr && scratch_->context != nullptr, "Matcher", "There is no memory for matching.");
}

Matcher::~Matcher() = default;

void Matcher::reset(std::string_view subject) {
  subject_ = subject;
  at_ = 0;
  last_end_.reset();
}

bool Matcher::search() {
  const auto run = [&] {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(subject_.data());
    if (!code_->jit) {
      return pcre2_match(code_->compiled, subject, subject_.size(), at_, PCRE2_NO_UTF_CHECK, scratch_->data,
                         scratch_->context);
    }
    return pcre2_jit_match(code_->compiled, subject, subject_.size(), at_, 0, scratch_->data, scratch_->context);
  };
  int result = run();
  if (result == PCRE2_ERROR_JIT_STACKLIMIT && scratch_->stack == nullptr) {
    scratch_->stack = pcre2_jit_stack_create(jit_stack_start, jit_stack_cap, nullptr);
    pcre2_jit_stack_assign(scratch_->context, nullptr, scratch_->stack);
    result = run();
  }
  // 0 says that the groups did not fit; only the whole match is wanted.
  check<DataError>(result >= 0 || result == PCRE2_ERROR_NOMATCH, code_->where,
                   "The pattern \"{}\" cannot be matched against a text of {} bytes: {}.", shown(code_->pattern),
                   subject_.size(), pcre2_message(result));
  return result >= 0;
}

std::optional<ByteSpan> Matcher::next() {
  while (at_ <= subject_.size() && search()) {
    const PCRE2_SIZE* found = pcre2_get_ovector_pointer(scratch_->data);
    // A \K in a look-ahead can set the start behind the end.
    const std::size_t begin = std::min(found[0], found[1]);
    const std::size_t end = found[1];
    if (begin == end && last_end_ == end) {
      at_ += at_ < subject_.size() ? utf8_length(static_cast<unsigned char>(subject_[at_])) : 1;
      continue;
    }
    at_ = end;
    last_end_ = end;
    return ByteSpan{static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end)};
  }
  at_ = subject_.size() + 1;
  return std::nullopt;
}

}  // namespace nibble::text
