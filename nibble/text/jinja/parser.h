#pragma once

#include <string_view>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/text/jinja/ast.h"
#include "nibble/text/jinja/lexer.h"

namespace nibble::jinja {

// The grammar of jinja2 3.1 (its parser.py), without inheritance and imports, with `break`, `continue` and the
// `generation` block of transformers. Throws DataError with the line; nesting is bounded.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Block parse();

 private:
  // Statements (parser_statements.cpp). A block ends before the tag that begins with one of `ends`.
  Block parse_block(const std::vector<std::string_view>& ends);
  Statement parse_tag(std::string_view keyword, int line);
  If parse_if();
  For parse_for();
  Statement parse_set(int line);
  Macro parse_macro();
  CallBlock parse_call_block();
  FilterBlock parse_filter_block();
  With parse_with();
  std::vector<Parameter> parse_parameters();
  Target parse_target(bool allow_attribute);
  Target parse_single_target(bool allow_attribute);
  void end_block(std::string_view keyword);
  void expect_block_end();

  // Expressions (parser.cpp), from the loosest binding to the tightest.
  ExprPtr parse_tuple_or_expression(bool allow_condition = true);
  ExprPtr parse_expression(bool allow_condition = true);
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_compare();
  ExprPtr parse_sum();
  ExprPtr parse_concat();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool with_filters = true);
  ExprPtr parse_primary();
  ExprPtr parse_number();
  ExprPtr parse_list();
  ExprPtr parse_dict();
  ExprPtr parse_postfix(ExprPtr operand);
  ExprPtr parse_subscript(ExprPtr operand);
  ExprPtr parse_filters_and_tests(ExprPtr operand);
  ExprPtr parse_filter_chain(ExprPtr operand);
  ExprPtr parse_test(ExprPtr operand);
  CallArguments parse_arguments();
  std::string parse_dotted_name();

  template <typename Node>
  ExprPtr make(Node node, int line, int depth = 1) const;
  // A node whose left operand is `left`: counts the length of such chains.
  template <typename Node>
  ExprPtr extend(Node node, int line, int left_depth) const;

  const Token& peek(std::size_t ahead = 0) const;
  Token take();
  bool at_op(std::string_view op) const;
  bool at_name(std::string_view name) const;
  bool skip_op(std::string_view op);
  bool skip_name(std::string_view name);
  void expect_op(std::string_view op);
  std::string expect_identifier(std::string_view purpose);
  [[noreturn]] void unexpected(std::string_view wanted) const;

  // Counts the nesting of the recursive functions while it lives.
  class Nesting;

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;  // around the current statement, inside its macro
};

class Parser::Nesting {
 public:
  explicit Nesting(Parser& parser);
  ~Nesting() { --parser_.nesting_; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  Parser& parser_;
};

template <typename Node>
ExprPtr Parser::make(Node node, int line, int depth) const {
  return std::make_unique<Expr>(Expr{std::move(node), line, depth});
}

template <typename Node>
ExprPtr Parser::extend(Node node, int line, int left_depth) const {
  constexpr int max_chain = 500;
  check<DataError>(left_depth < max_chain, "chat_template",
                   "line {}: The expression has more than {} operations in a row.", line, max_chain);
  return make(std::move(node), line, left_depth + 1);
}

}  // namespace nibble::jinja
