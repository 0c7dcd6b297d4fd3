#include "nibble/text/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "nibble/base/error.h"
#include "nibble/text/jinja/string_literal.h"
#include "nibble/text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}
bool is_name_part(char c) { return is_name_start(c) || is_digit(c); }
bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// jinja2 reads every kind of line end as \n and drops one at the end of the template.
std::string normalize(std::string_view source) {
  std::string result = normalize_newlines(source);
  if (!result.empty() && result.back() == '\n') result.pop_back();
  return result;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize(source)), rest_(source_) {}

  std::vector<Token> run() {
    while (at_ < rest_.size()) read_text();
    push(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  void read_text() {
    const std::size_t begin = find_tag();
    const std::string_view text = rest_.substr(at_, begin - at_);
    if (begin == rest_.npos) {
      emit_text(rest_.substr(at_));
      at_ = rest_.size();
      return;
    }
    const char type = rest_[begin + 1];
    const char sign = begin + 2 < rest_.size() && (rest_[begin + 2] == '-' || rest_[begin + 2] == '+')
                          ? rest_[begin + 2]
                          : '\0';
    emit_text(strip_before_tag(text, sign, type != '{'));
    advance_lines(text);
    at_ = begin + 2 + (sign != '\0' ? 1 : 0);
    if (type == '#') {
      skip_comment();
    } else if (type == '%' && skip_word("raw")) {
      read_raw();
    } else {
      push(type == '{' ? TokenKind::print_begin : TokenKind::block_begin, "");
      read_code(type == '{' ? '}' : '%');
    }
  }

  std::size_t find_tag() const {
    for (std::size_t i = rest_.find('{', at_); i != rest_.npos && i + 1 < rest_.size(); i = rest_.find('{', i + 1)) {
      if (rest_[i + 1] == '{' || rest_[i + 1] == '%' || rest_[i + 1] == '#') return i;
    }
    return rest_.npos;
  }

  // `-` takes all white space before the tag; lstrip_blocks that between the start of a line and a block.
  std::string_view strip_before_tag(std::string_view text, char sign, bool is_block) const {
    if (sign == '-') return unicode::strip(text, unicode::Side::right);
    if (sign == '+' || !is_block) return text;
    const auto newline = text.rfind('\n');
    if (newline == text.npos && !line_starting_) return text;
    const std::size_t start = newline == text.npos ? 0 : newline + 1;
    return unicode::strip(text.substr(start), unicode::Side::both).empty() ? text.substr(0, start) : text;
  }

  // Behind the closing mark at `at_` of a tag with `sign`: `-` takes the white space, trim_blocks one line end.
  void end_tag(char sign, bool trim_newline) {
    const std::size_t begin = at_;
    if (sign == '-') {
      const auto after = rest_.substr(at_);
      at_ += after.size() - unicode::strip(after, unicode::Side::left).size();
    } else if (sign != '+' && trim_newline && at_ < rest_.size() && rest_[at_] == '\n') {
      ++at_;
    }
    advance_lines(rest_.substr(begin, at_ - begin));
    line_starting_ = at_ > begin && rest_[at_ - 1] == '\n';
  }

  // Whether `word` and then the end of a tag follow; passes both.
  bool skip_word(std::string_view word) {
    std::size_t i = skip_blanks(at_);
    if (rest_.substr(i, word.size()) != word) return false;
    i += word.size();
    const std::size_t close = skip_blanks(i);
    const bool minus = close < rest_.size() && rest_[close] == '-';
    if (rest_.substr(close + (minus ? 1 : 0), 2) != "%}") return false;
    advance_lines(rest_.substr(at_, close - at_));
    at_ = close + (minus ? 3 : 2);
    end_tag(minus ? '-' : '\0', false);
    return true;
  }

  void skip_comment() {
    const auto end = rest_.find("#}", at_);
    check<DataError>(end != rest_.npos, in_template, "line {}: The comment that begins here has no #}}.", line_);
    const bool signed_end = end > at_ && (rest_[end - 1] == '-' || rest_[end - 1] == '+');
    advance_lines(rest_.substr(at_, end - at_));
    at_ = end + 2;
    end_tag(signed_end ? rest_[end - 1] : '\0', true);
  }

  void read_raw() {
    const int first_line = line_;
    for (std::size_t i = rest_.find("{%", at_); i != rest_.npos; i = rest_.find("{%", i + 1)) {
      std::size_t p = i + 2;
      const char begin_sign = p < rest_.size() && (rest_[p] == '-' || rest_[p] == '+') ? rest_[p++] : '\0';
      p = skip_blanks(p);
      if (rest_.substr(p, 6) != "endraw") continue;
      p = skip_blanks(p + 6);
      const char end_sign = p < rest_.size() && (rest_[p] == '-' || rest_[p] == '+') ? rest_[p++] : '\0';
      if (rest_.substr(p, 2) != "%}") continue;
      emit_text(strip_before_tag(rest_.substr(at_, i - at_), begin_sign, true));
      advance_lines(rest_.substr(at_, p - at_));
      at_ = p + 2;
      end_tag(end_sign, true);
      return;
    }
    fail<DataError>(in_template, "line {}: The raw block that begins here has no endraw.", first_line);
  }

  void read_code(char close) {
    const int first_line = line_;
    std::string brackets;
    while (true) {
      const std::size_t begin = at_;
      at_ = skip_blanks(at_);
      advance_lines(rest_.substr(begin, at_ - begin));
      check<DataError>(at_ < rest_.size(), in_template, "line {}: The tag that begins here has no {}}}.", first_line, close);
      if (brackets.empty() && read_end(close)) return;
      read_token(brackets);
    }
  }

  bool read_end(char close) {
    const char c = rest_[at_];
    const bool has_sign = c == '-' || (c == '+' && close == '%');
    const std::size_t mark = at_ + (has_sign ? 1 : 0);
    if (mark + 1 >= rest_.size() || rest_[mark] != close || rest_[mark + 1] != '}') return false;
    push(close == '%' ? TokenKind::block_end : TokenKind::print_end, "");
    at_ = mark + 2;
    end_tag(has_sign ? c : '\0', close == '%');
    return true;
  }

  void read_token(std::string& brackets) {
    const char c = rest_[at_];
    if (is_digit(c)) return read_number();
    if (is_name_start(c)) {
      const std::size_t begin = at_;
      while (at_ < rest_.size() && is_name_part(rest_[at_])) ++at_;
      return push(TokenKind::name, std::string(rest_.substr(begin, at_ - begin)));
    }
    if (c == '\'' || c == '"') return read_string(c);
    read_operator(brackets);
  }

  void read_string(char quote) {
    std::size_t end = at_ + 1;
    while (end < rest_.size() && rest_[end] != quote) end += rest_[end] == '\\' ? 2 : 1;
    check<DataError>(end < rest_.size(), in_template, "line {}: The string that begins here is not closed.", line_);
    const std::string_view body = rest_.substr(at_ + 1, end - at_ - 1);
    push(TokenKind::string, unescape(body, line_));
    advance_lines(body);
    at_ = end + 1;
  }

  void read_number() {
    const std::size_t begin = at_;
    const auto digits = [&](auto&& accepts) {
      while (at_ < rest_.size() && (accepts(rest_[at_]) || (rest_[at_] == '_' && at_ + 1 < rest_.size() &&
                                                            accepts(rest_[at_ + 1])))) {
        ++at_;
      }
    };
    const bool based = rest_[at_] == '0' && at_ + 1 < rest_.size() &&
                       std::string_view("xXoObB").find(rest_[at_ + 1]) != std::string_view::npos;
    TokenKind kind = TokenKind::integer;
    if (based) {
      at_ += 2;
      digits([](char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; });
    } else {
      digits(is_digit);
      // `1.x` is a lookup on 1 and `a.0.1` two of them, not numbers with a point.
      const bool after_dot = !tokens_.empty() && tokens_.back().kind == TokenKind::op && tokens_.back().text == ".";
      if (!after_dot && at_ + 1 < rest_.size() && rest_[at_] == '.' && is_digit(rest_[at_ + 1])) {
        kind = TokenKind::real;
        ++at_;
        digits(is_digit);
      }
      if (!after_dot && skip_exponent()) {
        kind = TokenKind::real;
        digits(is_digit);
      }
    }
    std::string text(rest_.substr(begin, at_ - begin));
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    push(kind, std::move(text));
  }

  bool skip_exponent() {
    if (at_ >= rest_.size() || (rest_[at_] != 'e' && rest_[at_] != 'E')) return false;
    std::size_t i = at_ + 1;
    if (i < rest_.size() && (rest_[i] == '+' || rest_[i] == '-')) ++i;
    if (i >= rest_.size() || !is_digit(rest_[i])) return false;
    at_ = i;
    return true;
  }

  void read_operator(std::string& brackets) {
    static constexpr std::array<std::string_view, 6> pairs = {"//", "**", "==", "!=", ">=", "<="};
    const std::string_view two = rest_.substr(at_, 2);
    if (std::find(pairs.begin(), pairs.end(), two) != pairs.end()) {
      push(TokenKind::op, std::string(two));
      at_ += 2;
      return;
    }
    const char c = rest_[at_];
    check<DataError>(std::string_view("+-/*%~[](){}><=.:|,;").find(c) != std::string_view::npos, in_template,
                     "line {}: The character '{}' has no meaning inside a tag.", line_, c);
    if (c == '(' || c == '[' || c == '{') brackets += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      check<DataError>(!brackets.empty() && brackets.back() == c, in_template, "line {}: The bracket '{}' was not opened.",
                       line_, c);
      brackets.pop_back();
    }
    push(TokenKind::op, std::string(1, c));
    ++at_;
  }

  std::size_t skip_blanks(std::size_t at) const {
    while (at < rest_.size() && is_blank(rest_[at])) ++at;
    return at;
  }

  void emit_text(std::string_view text) {
    if (!text.empty()) push(TokenKind::text, std::string(text));
  }

  void push(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  void advance_lines(std::string_view passed) {
    line_ += static_cast<int>(std::count(passed.begin(), passed.end(), '\n'));
  }

  std::string source_;
  std::string_view rest_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace nibble::jinja
