#include "nibble/text/decoder.h"

#include <charconv>
#include <optional>

#include "nibble/base/error.h"
#include "nibble/text/byte_level.h"
#include "nibble/text/json_pieces.h"
#include "nibble/text/regex.h"
#include "nibble/text/utf8.h"

namespace nibble::text {
namespace {

class Sequence : public Decoder {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Decoder>> steps) : steps_(std::move(steps)) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (const auto& step : steps_) step->apply(tokens);
  }
  std::string bytes(std::string token) const override {
    for (const auto& step : steps_) token = step->bytes(std::move(token));
    return token;
  }

 private:
  std::vector<std::unique_ptr<Decoder>> steps_;
};

class ByteLevel : public Decoder {
 public:
  void apply(std::vector<std::string>& tokens) const override {
    std::string all;
    for (const std::string& token : tokens) all += from_byte_level(token);
    tokens.assign(1, replace_broken_utf8(all));
  }
  std::string bytes(std::string token) const override { return from_byte_level(token); }
};

std::optional<char> byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  unsigned value = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, value, 16);
  if (error != std::errc() || end != token.data() + 5) return std::nullopt;
  return static_cast<char>(value);
}

// Runs of "<0xNN>" become the characters that they spell; a run that is not UTF-8 becomes one U+FFFD a byte.
class ByteFallback : public Decoder {
 public:
  void apply(std::vector<std::string>& tokens) const override {
    std::vector<std::string> out;
    std::string run;
    const auto flush = [&] {
      if (run.empty()) return;
      if (valid_utf8_prefix(run) == run.size()) {
        out.push_back(run);
      } else {
        out.insert(out.end(), run.size(), to_utf8(replacement_character));
      }
      run.clear();
    };
    for (std::string& token : tokens) {
      if (const auto byte = byte_of_token(token)) {
        run.push_back(*byte);
        continue;
      }
      flush();
      out.push_back(std::move(token));
    }
    flush();
    tokens = std::move(out);
  }
  std::string bytes(std::string token) const override {
    const auto byte = byte_of_token(token);
    return byte ? std::string(1, *byte) : token;
  }
};

class Fuse : public Decoder {
 public:
  void apply(std::vector<std::string>& tokens) const override {
    std::string all;
    for (const std::string& token : tokens) all += token;
    tokens.assign(1, std::move(all));
  }
};

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  std::string out;
  std::size_t at = 0;
  for (std::size_t found = text.find(from); found != std::string::npos; found = text.find(from, at)) {
    out.append(text, at, found - at).append(to);
    at = found + from.size();
  }
  text = out.append(text, at);
}

class MetaspaceDecoder : public Decoder {
 public:
  MetaspaceDecoder(std::string mark, bool prepended) : mark_(std::move(mark)), prepended_(prepended) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i) replace_all(tokens[i], mark_, i == 0 && prepended_ ? "" : " ");
  }

 private:
  std::string mark_;
  bool prepended_;
};

class Replace : public Decoder {
 public:
  Replace(Regex pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(std::vector<std::string>& tokens) const override {
    Matcher matcher(pattern_);
    for (std::string& token : tokens) {
      std::string out;
      std::size_t at = 0;
      matcher.reset(token);
      while (const auto match = matcher.next()) {
        out.append(token, at, match->begin - at).append(content_);
        at = match->end;
      }
      out.append(token, at);
      token = std::move(out);
    }
  }

 private:
  Regex pattern_;
  std::string content_;
};

// Takes up to `start` copies of one character off the front of each token, and up to `stop` off its end.
class Strip : public Decoder {
 public:
  Strip(std::string content, std::int64_t start, std::int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (std::string& token : tokens) {
      std::string_view rest = token;
      for (std::int64_t i = 0; i < start_ && rest.starts_with(content_); ++i) rest.remove_prefix(content_.size());
      for (std::int64_t i = 0; i < stop_ && rest.ends_with(content_); ++i) rest.remove_suffix(content_.size());
      token = std::string(rest);
    }
  }

 private:
  std::string content_;
  std::int64_t start_;
  std::int64_t stop_;
};

}  // namespace

std::unique_ptr<Decoder> make_decoder(const JsonObject& json) {
  const std::string type = json.string("type");
  if (type == "Sequence") {
    std::vector<std::unique_ptr<Decoder>> steps;
    for (const JsonObject& step : read_objects(json, "decoders")) steps.push_back(make_decoder(step));
    return std::make_unique<Sequence>(std::move(steps));
  }
  if (type == "ByteLevel") return std::make_unique<ByteLevel>();
  if (type == "ByteFallback") return std::make_unique<ByteFallback>();
  if (type == "Fuse") return std::make_unique<Fuse>();
  if (type == "Metaspace") {
    const bool prepended = json.boolean("add_prefix_space", true) && json.string("prepend_scheme", "always") != "never";
    return std::make_unique<MetaspaceDecoder>(read_char(json, "replacement"), prepended);
  }
  if (type == "Strip") {
    return std::make_unique<Strip>(read_char(json, "content"), json.integer("start", {}), json.integer("stop", {}));
  }
  if (type == "Replace") {
    const PatternText pattern = read_pattern(json);
    Regex regex = pattern.is_regex ? Regex(pattern.text, json.origin()) : Regex::literal(pattern.text, json.origin());
    return std::make_unique<Replace>(std::move(regex), json.string("content"));
  }
  fail<DataError>(
      json.origin(),
      "The decoder type \"{}\" is not supported; Sequence, ByteLevel, ByteFallback, Fuse, Metaspace, Replace "
      "and Strip are.",
      type);
}

}  // namespace nibble::text
