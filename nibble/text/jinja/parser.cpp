#include "nibble/text/jinja/parser.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"

namespace nibble::jinja {
namespace {

constexpr int max_nesting = 150;

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::text: return "text";
    case TokenKind::print_begin: return "'{{'";
    case TokenKind::print_end: return "'}}'";
    case TokenKind::block_begin: return "'{%'";
    case TokenKind::block_end: return "'%}'";
    case TokenKind::string: return "a string";
    case TokenKind::end: return "the end of the template";
    default: return fmt::format("'{}'", token.text);
  }
}

}  // namespace

Parser::Nesting::Nesting(Parser& parser) : parser_(parser) {
  check<DataError>(parser.nesting_ < max_nesting, in_template, "line {}: The template is nested deeper than {} levels.",
                   parser.peek().line, max_nesting);
  ++parser.nesting_;
}

const Token& Parser::peek(std::size_t ahead) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }

Token Parser::take() {
  const std::size_t at = at_;
  if (at_ + 1 < tokens_.size()) ++at_;
  return tokens_[at];
}

bool Parser::at_op(std::string_view op) const { return peek().kind == TokenKind::op && peek().text == op; }
bool Parser::at_name(std::string_view name) const { return peek().kind == TokenKind::name && peek().text == name; }

bool Parser::skip_op(std::string_view op) {
  if (!at_op(op)) return false;
  take();
  return true;
}

bool Parser::skip_name(std::string_view name) {
  if (!at_name(name)) return false;
  take();
  return true;
}

void Parser::expect_op(std::string_view op) {
  if (!skip_op(op)) unexpected(fmt::format("'{}'", op));
}

std::string Parser::expect_identifier(std::string_view purpose) {
  if (peek().kind != TokenKind::name) unexpected(purpose);
  return take().text;
}

void Parser::unexpected(std::string_view wanted) const {
  fail<DataError>(in_template, "line {}: Found {} where {} is expected.", peek().line, describe(peek()), wanted);
}

ExprPtr Parser::parse_tuple_or_expression(bool allow_condition) {
  const int line = peek().line;
  ExprPtr first = parse_expression(allow_condition);
  if (!at_op(",")) return first;
  ListLiteral tuple{.items = {}, .is_tuple = true};
  tuple.items.push_back(std::move(first));
  while (skip_op(",")) {
    const bool ends = peek().kind == TokenKind::print_end || peek().kind == TokenKind::block_end || at_op(")") ||
                      (!allow_condition && (at_name("if") || at_name("recursive")));
    if (ends) break;
    tuple.items.push_back(parse_expression(allow_condition));
  }
  return make(std::move(tuple), line);
}

ExprPtr Parser::parse_expression(bool allow_condition) {
  const Nesting nesting(*this);
  ExprPtr value = parse_or();
  while (allow_condition && at_name("if")) {
    const int line = take().line;
    ExprPtr condition = parse_or();
    ExprPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
    const int depth = value->depth;
    value = extend(Conditional{std::move(condition), std::move(value), std::move(otherwise)}, line, depth);
  }
  return value;
}

ExprPtr Parser::parse_or() {
  ExprPtr left = parse_and();
  while (at_name("or")) {
    const int line = take().line;
    const int depth = left->depth;
    ExprPtr right = parse_and();
    left = extend(Logic{.is_and = false, .left = std::move(left), .right = std::move(right)}, line, depth);
  }
  return left;
}

ExprPtr Parser::parse_and() {
  ExprPtr left = parse_not();
  while (at_name("and")) {
    const int line = take().line;
    const int depth = left->depth;
    ExprPtr right = parse_not();
    left = extend(Logic{.is_and = true, .left = std::move(left), .right = std::move(right)}, line, depth);
  }
  return left;
}

ExprPtr Parser::parse_not() {
  if (!at_name("not")) return parse_compare();
  const Nesting nesting(*this);
  const int line = take().line;
  return make(Unary{UnaryOp::logical_not, parse_not()}, line);
}

ExprPtr Parser::parse_compare() {
  static constexpr std::pair<std::string_view, CompareOp> ops[] = {
      {"==", CompareOp::equal},      {"!=", CompareOp::not_equal}, {"<", CompareOp::less},
      {"<=", CompareOp::less_equal}, {">", CompareOp::greater},    {">=", CompareOp::greater_equal}};
  const auto next_op = [&](CompareOp& op) {
    if (skip_name("in")) return op = CompareOp::in, true;
    if (at_name("not") && peek(1).kind == TokenKind::name && peek(1).text == "in") {
      take();
      take();
      return op = CompareOp::not_in, true;
    }
    for (const auto& [text, candidate] : ops) {
      if (skip_op(text)) return op = candidate, true;
    }
    return false;
  };
  const int line = peek().line;
  ExprPtr first = parse_sum();
  Compare compare;
  for (CompareOp op{}; next_op(op);) compare.rest.emplace_back(op, parse_sum());
  if (compare.rest.empty()) return first;
  compare.first = std::move(first);
  return make(std::move(compare), line);
}

ExprPtr Parser::parse_sum() {
  ExprPtr left = parse_concat();
  while (at_op("+") || at_op("-")) {
    const Token op = take();
    const int depth = left->depth;
    ExprPtr right = parse_concat();
    const BinaryOp kind = op.text == "+" ? BinaryOp::add : BinaryOp::subtract;
    left = extend(Binary{kind, std::move(left), std::move(right)}, op.line, depth);
  }
  return left;
}

ExprPtr Parser::parse_concat() {
  const int line = peek().line;
  ExprPtr first = parse_product();
  if (!at_op("~")) return first;
  Concat concat;
  concat.parts.push_back(std::move(first));
  while (skip_op("~")) concat.parts.push_back(parse_product());
  return make(std::move(concat), line);
}

ExprPtr Parser::parse_product() {
  static constexpr std::pair<std::string_view, BinaryOp> ops[] = {{"*", BinaryOp::multiply},
                                                                  {"/", BinaryOp::divide},
                                                                  {"//", BinaryOp::floor_divide},
                                                                  {"%", BinaryOp::modulo}};
  ExprPtr left = parse_power();
  while (true) {
    const auto* op = std::find_if(std::begin(ops), std::end(ops), [&](const auto& o) { return at_op(o.first); });
    if (op == std::end(ops)) return left;
    const int line = take().line;
    const int depth = left->depth;
    ExprPtr right = parse_power();
    left = extend(Binary{op->second, std::move(left), std::move(right)}, line, depth);
  }
}

ExprPtr Parser::parse_power() {
  ExprPtr left = parse_unary();
  while (at_op("**")) {
    const int line = take().line;
    const int depth = left->depth;
    ExprPtr right = parse_unary();
    left = extend(Binary{BinaryOp::power, std::move(left), std::move(right)}, line, depth);
  }
  return left;
}

ExprPtr Parser::parse_unary(bool with_filters) {
  const Nesting nesting(*this);
  const int line = peek().line;
  ExprPtr value;
  if (skip_op("-")) {
    value = make(Unary{UnaryOp::negate, parse_unary(false)}, line);
  } else if (skip_op("+")) {
    value = make(Unary{UnaryOp::plus, parse_unary(false)}, line);
  } else {
    value = parse_primary();
  }
  value = parse_postfix(std::move(value));
  return with_filters ? parse_filters_and_tests(std::move(value)) : std::move(value);
}

ExprPtr Parser::parse_postfix(ExprPtr operand) {
  while (true) {
    const int line = peek().line;
    const int depth = operand->depth;
    if (skip_op(".")) {
      if (peek().kind == TokenKind::integer) {
        operand = extend(GetItem{std::move(operand), parse_number()}, line, depth);
      } else {
        operand = extend(GetAttribute{std::move(operand), expect_identifier("a name or a number")}, line, depth);
      }
    } else if (skip_op("[")) {
      operand = parse_subscript(std::move(operand));
    } else if (at_op("(")) {
      operand = extend(Call{std::move(operand), parse_arguments()}, line, depth);
    } else {
      return operand;
    }
  }
}

ExprPtr Parser::parse_subscript(ExprPtr operand) {
  const int line = peek().line;
  const int depth = operand->depth;
  ExprPtr bounds[3];
  bool is_slice = false;
  for (std::size_t i = 0; i < 3; ++i) {
    if (!at_op(":") && !at_op("]")) bounds[i] = i == 0 ? parse_tuple_or_expression() : parse_expression();
    if (!skip_op(":")) break;
    is_slice = true;
  }
  if (!is_slice && !bounds[0]) unexpected("an index");
  expect_op("]");
  if (!is_slice) return extend(GetItem{std::move(operand), std::move(bounds[0])}, line, depth);
  return extend(Slice{std::move(operand), std::move(bounds[0]), std::move(bounds[1]), std::move(bounds[2])}, line,
                depth);
}

ExprPtr Parser::parse_filters_and_tests(ExprPtr operand) {
  while (true) {
    const int line = peek().line;
    const int depth = operand->depth;
    if (at_op("|")) {
      operand = parse_filter_chain(std::move(operand));
    } else if (at_name("is")) {
      operand = parse_test(std::move(operand));
    } else if (at_op("(")) {
      operand = extend(Call{std::move(operand), parse_arguments()}, line, depth);
    } else {
      return operand;
    }
  }
}

ExprPtr Parser::parse_filter_chain(ExprPtr operand) {
  while (skip_op("|")) {
    const int line = peek().line;
    const int depth = operand ? operand->depth : 0;
    FilterCall filter{.operand = std::move(operand), .name = parse_dotted_name(), .arguments = {}};
    if (at_op("(")) filter.arguments = parse_arguments();
    operand = extend(std::move(filter), line, depth);
  }
  return operand;
}

ExprPtr Parser::parse_test(ExprPtr operand) {
  const int line = take().line;
  const int depth = operand->depth;
  const bool negated = skip_name("not");
  TestCall test{.operand = std::move(operand), .name = parse_dotted_name(), .arguments = {}};
  const bool literal = peek().kind == TokenKind::string || peek().kind == TokenKind::integer ||
                       peek().kind == TokenKind::real || at_op("[") || at_op("{");
  const bool name = peek().kind == TokenKind::name && !at_name("else") && !at_name("or") && !at_name("and") &&
                    !at_name("if") && !at_name("in") && !at_name("not");
  if (at_op("(")) {
    test.arguments = parse_arguments();
  } else if (literal || name) {
    check<DataError>(!at_name("is"), in_template, "line {}: Tests cannot be chained with a second 'is'.", line);
    test.arguments.positional.push_back(parse_postfix(parse_primary()));
  }
  ExprPtr result = extend(std::move(test), line, depth);
  if (!negated) return result;
  return extend(Unary{UnaryOp::logical_not, std::move(result)}, line, depth + 1);
}

CallArguments Parser::parse_arguments() {
  CallArguments arguments;
  expect_op("(");
  for (bool first = true; !skip_op(")"); first = false) {
    if (!first) expect_op(",");
    if (skip_op(")")) break;
    check<DataError>(!at_op("*") && !at_op("**"), in_template, "line {}: Arguments unpacked with * are not supported.",
                     peek().line);
    if (peek().kind == TokenKind::name && peek(1).kind == TokenKind::op && peek(1).text == "=") {
      std::string name = take().text;
      take();
      arguments.named.emplace_back(std::move(name), parse_expression());
    } else {
      if (!arguments.named.empty()) unexpected("a named argument");
      arguments.positional.push_back(parse_expression());
    }
  }
  return arguments;
}

std::string Parser::parse_dotted_name() {
  std::string name = expect_identifier("a name");
  while (skip_op(".")) name.append(".").append(expect_identifier("a name"));
  return name;
}

}  // namespace nibble::jinja
