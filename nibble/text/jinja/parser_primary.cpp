#include <charconv>

#include "nibble/base/error.h"
#include "nibble/text/jinja/parser.h"

namespace nibble::jinja {
ExprPtr Parser::parse_primary() {
  const int line = peek().line;
  if (peek().kind == TokenKind::integer || peek().kind == TokenKind::real) return parse_number();
  if (peek().kind == TokenKind::string) {
    std::string text = take().text;
    while (peek().kind == TokenKind::string) text += take().text;
    return make(Constant{Value(std::move(text))}, line);
  }
  if (peek().kind == TokenKind::name) {
    std::string name = take().text;
    if (name == "true" || name == "True") return make(Constant{Value(true)}, line);
    if (name == "false" || name == "False") return make(Constant{Value(false)}, line);
    if (name == "none" || name == "None") return make(Constant{Value::none()}, line);
    return make(Name{std::move(name)}, line);
  }
  if (skip_op("(")) {
    if (skip_op(")")) return make(ListLiteral{.items = {}, .is_tuple = true}, line);
    ExprPtr value = parse_tuple_or_expression();
    expect_op(")");
    return value;
  }
  if (at_op("[")) return parse_list();
  if (at_op("{")) return parse_dict();
  unexpected("an expression");
}

ExprPtr Parser::parse_number() {
  const Token token = take();
  const char* begin = token.text.data();
  const char* end = begin + token.text.size();
  if (token.kind == TokenKind::real) {
    double value = 0.0;
    const auto result = std::from_chars(begin, end, value);
    check<DataError>(result.ec == std::errc(), in_template, "line {}: The number {} does not fit a double.", token.line,
                     token.text);
    return make(Constant{Value(value)}, token.line);
  }
  int base = 10;
  if (token.text.size() > 2 && token.text[0] == '0') {
    const char letter = static_cast<char>(token.text[1] | 0x20);
    base = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 10;
    if (base != 10) begin += 2;
  }
  std::int64_t value = 0;
  const auto result = std::from_chars(begin, end, value, base);
  check<DataError>(result.ec == std::errc() && result.ptr == end, in_template, "line {}: {} is not an integer of 64 bits.",
                   token.line, token.text);
  return make(Constant{Value(value)}, token.line);
}

ExprPtr Parser::parse_list() {
  const int line = take().line;
  ListLiteral list;
  while (!skip_op("]")) {
    if (!list.items.empty()) expect_op(",");
    if (skip_op("]")) break;
    list.items.push_back(parse_expression());
  }
  return make(std::move(list), line);
}

ExprPtr Parser::parse_dict() {
  const int line = take().line;
  DictLiteral dict;
  while (!skip_op("}")) {
    if (!dict.entries.empty()) expect_op(",");
    if (skip_op("}")) break;
    ExprPtr key = parse_expression();
    expect_op(":");
    dict.entries.emplace_back(std::move(key), parse_expression());
  }
  return make(std::move(dict), line);
}

}  // namespace nibble::jinja
