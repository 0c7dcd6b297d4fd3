#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/text/jinja/parser.h"

namespace nibble::jinja {
Block Parser::parse() { return parse_block({}); }

Block Parser::parse_block(const std::vector<std::string_view>& ends) {
  const Nesting nesting(*this);
  Block block;
  while (peek().kind != TokenKind::end) {
    const Token token = take();
    if (token.kind == TokenKind::text) {
      block.push_back({Text{token.text}, token.line});
    } else if (token.kind == TokenKind::print_begin) {
      block.push_back({Print{parse_tuple_or_expression()}, token.line});
      if (take().kind != TokenKind::print_end) {
        --at_;
        unexpected("'}}'");
      }
    } else {
      const std::string keyword = expect_identifier("a tag's name");
      if (std::find(ends.begin(), ends.end(), keyword) != ends.end()) {
        --at_;
        return block;
      }
      block.push_back(parse_tag(keyword, token.line));
    }
  }
  check<DataError>(ends.empty(), in_template, "line {}: The template ends where {{% {} %}} is expected.", peek().line,
                   ends.empty() ? "" : ends.back());
  return block;
}

Statement Parser::parse_tag(std::string_view keyword, int line) {
  if (keyword == "if") return {parse_if(), line};
  if (keyword == "for") return {parse_for(), line};
  if (keyword == "set") return parse_set(line);
  if (keyword == "macro") return {parse_macro(), line};
  if (keyword == "call") return {parse_call_block(), line};
  if (keyword == "filter") return {parse_filter_block(), line};
  if (keyword == "with") return {parse_with(), line};
  if (keyword == "generation") {
    expect_block_end();
    Generation generation{parse_block({"endgeneration"})};
    end_block("endgeneration");
    return {std::move(generation), line};
  }
  if (keyword == "break" || keyword == "continue") {
    check<DataError>(loops_ > 0, in_template, "line {}: '{}' stands outside of a loop.", line, keyword);
    expect_block_end();
    if (keyword == "break") return {Break{}, line};
    return {Continue{}, line};
  }
  fail<DataError>(in_template,
                  "line {}: The tag '{}' is not supported here (known: if, for, set, macro, call, filter, with, "
                  "generation, break, continue, raw and their ends).",
                  line, keyword);
}

void Parser::expect_block_end() {
  if (peek().kind != TokenKind::block_end) unexpected("'%}'");
  take();
}

void Parser::end_block(std::string_view keyword) {
  if (!skip_name(keyword)) unexpected(fmt::format("'{}'", keyword));
  expect_block_end();
}

If Parser::parse_if() {
  If node;
  do {
    ExprPtr condition = parse_tuple_or_expression(false);
    expect_block_end();
    node.branches.emplace_back(std::move(condition), parse_block({"elif", "else", "endif"}));
  } while (skip_name("elif"));
  if (skip_name("else")) {
    expect_block_end();
    node.otherwise = parse_block({"endif"});
  }
  end_block("endif");
  return node;
}

For Parser::parse_for() {
  For node;
  node.target = parse_target(false);
  if (!skip_name("in")) unexpected("'in'");
  node.iterable = parse_tuple_or_expression(false);
  if (skip_name("if")) node.filter = parse_expression();
  node.recursive = skip_name("recursive");
  expect_block_end();
  ++loops_;
  node.body = parse_block({"else", "endfor"});
  --loops_;
  if (skip_name("else")) {
    expect_block_end();
    node.otherwise = parse_block({"endfor"});
  }
  end_block("endfor");
  return node;
}

Statement Parser::parse_set(int line) {
  Target target = parse_target(true);
  if (skip_op("=")) {
    Set set{.target = std::move(target), .value = parse_tuple_or_expression()};
    expect_block_end();
    return {std::move(set), line};
  }
  SetBlock set{.target = std::move(target), .filters = parse_filter_chain(nullptr), .body = {}};
  expect_block_end();
  set.body = parse_block({"endset"});
  end_block("endset");
  return {std::move(set), line};
}

Macro Parser::parse_macro() {
  auto macro = std::make_shared<MacroBody>();
  macro->name = expect_identifier("the macro's name");
  macro->parameters = parse_parameters();
  expect_block_end();
  const int loops = std::exchange(loops_, 0);
  macro->body = parse_block({"endmacro"});
  loops_ = loops;
  end_block("endmacro");
  return {std::move(macro)};
}

CallBlock Parser::parse_call_block() {
  auto caller = std::make_shared<MacroBody>();
  caller->name = "caller";
  if (at_op("(")) caller->parameters = parse_parameters();
  ExprPtr call = parse_expression();
  if (!std::holds_alternative<Call>(call->node)) unexpected("a call before the tag's end");
  expect_block_end();
  const int loops = std::exchange(loops_, 0);
  caller->body = parse_block({"endcall"});
  loops_ = loops;
  end_block("endcall");
  return {std::move(call), std::move(caller)};
}

FilterBlock Parser::parse_filter_block() {
  FilterCall first{.operand = nullptr, .name = parse_dotted_name(), .arguments = {}};
  const int line = peek().line;
  if (at_op("(")) first.arguments = parse_arguments();
  FilterBlock node;
  node.filters = std::make_unique<Expr>(Expr{std::move(first), line, 1});
  node.filters = parse_filter_chain(std::move(node.filters));
  expect_block_end();
  node.body = parse_block({"endfilter"});
  end_block("endfilter");
  return node;
}

With Parser::parse_with() {
  With node;
  while (peek().kind != TokenKind::block_end) {
    if (!node.bindings.empty()) expect_op(",");
    Target target = parse_single_target(false);
    expect_op("=");
    node.bindings.emplace_back(std::move(target), parse_expression());
  }
  expect_block_end();
  node.body = parse_block({"endwith"});
  end_block("endwith");
  return node;
}

std::vector<Parameter> Parser::parse_parameters() {
  std::vector<Parameter> parameters;
  expect_op("(");
  for (bool first = true; !skip_op(")"); first = false) {
    if (!first) expect_op(",");
    if (skip_op(")")) break;
    Parameter parameter{.name = expect_identifier("a parameter's name"), .fallback = nullptr};
    if (skip_op("=")) {
      parameter.fallback = parse_expression();
    } else {
      check<DataError>(parameters.empty() || !parameters.back().fallback, in_template,
                       "line {}: The parameter '{}' without a default follows one with a default.", peek().line,
                       parameter.name);
    }
    parameters.push_back(std::move(parameter));
  }
  return parameters;
}

Target Parser::parse_target(bool allow_attribute) {
  Target first = parse_single_target(allow_attribute);
  if (!at_op(",")) return first;
  Target tuple{.name = {}, .attribute = {}, .items = {}, .is_tuple = true};
  tuple.items.push_back(std::move(first));
  while (skip_op(",")) {
    if (peek().kind != TokenKind::name && !at_op("(")) break;
    if (at_name("in")) break;
    tuple.items.push_back(parse_single_target(allow_attribute));
  }
  return tuple;
}

Target Parser::parse_single_target(bool allow_attribute) {
  const Nesting nesting(*this);
  if (skip_op("(")) {
    Target target = parse_target(allow_attribute);
    expect_op(")");
    return target;
  }
  Target target;
  const int line = peek().line;
  target.name = expect_identifier("a variable's name");
  check<DataError>(target.name != "true" && target.name != "false" && target.name != "none" && target.name != "True" &&
                       target.name != "False" && target.name != "None" && target.name != "loop",
                   in_template, "line {}: A value cannot be assigned to '{}'.", line, target.name);
  if (allow_attribute && skip_op(".")) target.attribute = expect_identifier("an attribute's name");
  return target;
}

}  // namespace nibble::jinja
