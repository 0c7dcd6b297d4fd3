#pragma once

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "nibble/text/jinja/value.h"

namespace nibble::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class BinaryOp { add, subtract, multiply, divide, floor_divide, modulo, power };
enum class UnaryOp { negate, plus, logical_not };
enum class CompareOp { equal, not_equal, less, less_equal, greater, greater_equal, in, not_in };

struct CallArguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
};

struct Constant {
  Value value;
};
struct Name {
  std::string name;
};
struct ListLiteral {
  std::vector<ExprPtr> items;
  bool is_tuple = false;
};
struct DictLiteral {
  std::vector<std::pair<ExprPtr, ExprPtr>> entries;
};
struct Unary {
  UnaryOp op;
  ExprPtr operand;
};
struct Binary {
  BinaryOp op;
  ExprPtr left, right;
};
struct Concat {  // a ~ b ~ c
  std::vector<ExprPtr> parts;
};
struct Logic {
  bool is_and = false;
  ExprPtr left, right;
};
struct Compare {  // a < b <= c
  ExprPtr first;
  std::vector<std::pair<CompareOp, ExprPtr>> rest;
};
struct Conditional {
  ExprPtr condition, then, otherwise;  // otherwise may be absent
};
struct GetAttribute {
  ExprPtr object;
  std::string name;
};
struct GetItem {
  ExprPtr object, index;
};
struct Slice {
  ExprPtr object, begin, end, step;  // each bound may be absent
};
struct Call {
  ExprPtr callee;
  CallArguments arguments;
};
struct FilterCall {
  ExprPtr operand;  // absent in filter blocks
  std::string name;
  CallArguments arguments;
};
struct TestCall {
  ExprPtr operand;
  std::string name;
  CallArguments arguments;
};

struct Expr {
  std::variant<Constant, Name, ListLiteral, DictLiteral, Unary, Binary, Concat, Logic, Compare, Conditional,
               GetAttribute, GetItem, Slice, Call, FilterCall, TestCall>
      node;
  int line = 1;
  int depth = 1;  // of the chain of nodes to the left, bounded by the parser
};

struct Statement;
using Block = std::vector<Statement>;

// What a for, a set or a macro's parameter binds: a name, `namespace.attribute` or a tuple of targets.
struct Target {
  std::string name;
  std::string attribute;
  std::vector<Target> items;
  bool is_tuple = false;
};

struct Text {
  std::string text;
};
struct Print {
  ExprPtr value;
};
struct If {
  std::vector<std::pair<ExprPtr, Block>> branches;
  Block otherwise;
};
struct For {
  Target target;
  ExprPtr iterable, filter;  // filter may be absent
  Block body, otherwise;
  bool recursive = false;
};
struct Set {
  Target target;
  ExprPtr value;
};
struct SetBlock {
  Target target;
  ExprPtr filters;  // chain of filters over the text, may be absent
  Block body;
};
struct Parameter {
  std::string name;
  ExprPtr fallback;  // may be absent
};
struct MacroBody {
  std::string name;
  std::vector<Parameter> parameters;
  Block body;
};
struct Macro {
  std::shared_ptr<const MacroBody> macro;
};
struct CallBlock {
  ExprPtr call;  // a Call
  std::shared_ptr<const MacroBody> caller;
};
struct FilterBlock {
  ExprPtr filters;
  Block body;
};
struct With {
  std::vector<std::pair<Target, ExprPtr>> bindings;
  Block body;
};
struct Generation {
  Block body;
};
struct Break {};
struct Continue {};

struct Statement {
  std::variant<Text, Print, If, For, Set, SetBlock, Macro, CallBlock, FilterBlock, With, Generation, Break, Continue>
      node;
  int line = 1;
};

}  // namespace nibble::jinja
