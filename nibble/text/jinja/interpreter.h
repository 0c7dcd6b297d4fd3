#pragma once

#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "nibble/text/jinja/ast.h"
#include "nibble/text/jinja/value.h"

namespace nibble::jinja {

struct Rendered {
  std::string text;
  // Bytes [begin, end) of `text` that came from generation blocks, in order.
  std::vector<std::pair<std::size_t, std::size_t>> generated;
  // A generation block ran inside a macro or a captured block, where its place in the text is unknown.
  bool lost_generation = false;
};

// Runs one template once. Steps, sizes and depth are bounded, so a hostile template ends in an error.
class Interpreter {
 public:
  // `now` is what strftime_now sees.
  Interpreter(const Block& program, const Dict& variables, std::time_t now);

  // Throws DataError with the line.
  Rendered run();

  // For the built-in functions; these throw TemplateError.
  Value apply_filter(std::string_view name, const Value& operand, const Arguments& arguments);
  bool apply_test(std::string_view name, const Value& operand, const Arguments& arguments);
  // Counts memory that the template asks for.
  void charge(std::size_t bytes);
  std::time_t now() const { return now_; }

 private:
  struct Scope {
    std::shared_ptr<Scope> parent;
    std::unordered_map<std::string, Value> variables;
  };
  enum class Flow { next, break_loop, continue_loop };
  class Depth;
  class ScopeGuard;

  // Statements (interpreter_statements.cpp).
  Flow run_block(const Block& block);
  Flow run_statement(const Statement& statement);
  Flow run(const Text& node);
  Flow run(const Print& node);
  Flow run(const If& node);
  Flow run(const For& node);
  Flow run(const Set& node);
  Flow run(const SetBlock& node);
  Flow run(const Macro& node);
  Flow run(const CallBlock& node);
  Flow run(const FilterBlock& node);
  Flow run(const With& node);
  Flow run(const Generation& node);
  Flow run(const Break&) { return Flow::break_loop; }
  Flow run(const Continue&) { return Flow::continue_loop; }
  void run_loop(const For& node, const Value& iterable, std::int64_t depth);
  std::function<bool()> filter_of(const For& node, List source, List& items);
  std::shared_ptr<const Callable> recursion_of(const For& node, std::int64_t depth);
  // What the block prints. (After an exception the interpreter is not used again.)
  std::string capture(const Block& block);
  void print(std::string_view text);
  void assign(const Target& target, const Value& value);
  Value macro_value(std::shared_ptr<const MacroBody> macro);
  Value call_macro(const MacroBody& macro, const std::shared_ptr<Scope>& scope, const Arguments& arguments);
  void bind_parameters(const MacroBody& macro, const Arguments& arguments);

  // Expressions (interpreter.cpp).
  Value eval(const Expr& expr);
  Value eval_node(const Constant& node) { return node.value; }
  Value eval_node(const Name& node);
  Value eval_node(const ListLiteral& node);
  Value eval_node(const DictLiteral& node);
  Value eval_node(const Unary& node);
  Value eval_node(const Binary& node);
  Value eval_node(const Concat& node);
  Value eval_node(const Logic& node);
  Value eval_node(const Compare& node);
  Value eval_node(const Conditional& node);
  Value eval_node(const GetAttribute& node);
  Value eval_node(const GetItem& node);
  Value eval_node(const Slice& node);
  Value eval_node(const Call& node);
  Value eval_node(const FilterCall& node);
  Value eval_node(const TestCall& node);
  Value apply_chain(const Expr& chain, Value input);
  Value call(const Value& callee, const Arguments& arguments);
  Arguments eval_arguments(const CallArguments& arguments);
  void step();

  const Block& program_;
  std::time_t now_;
  std::shared_ptr<Scope> scope_;
  std::string root_output_;
  std::string* output_ = &root_output_;
  Rendered rendered_;
  int line_ = 1;
  int depth_ = 0;
  std::size_t steps_ = 0;
  std::size_t charged_ = 0;
};

// Bounds the recursion of the interpreter.
class Interpreter::Depth {
 public:
  explicit Depth(Interpreter& interpreter);
  ~Depth() { --interpreter_.depth_; }
  Depth(const Depth&) = delete;
  Depth& operator=(const Depth&) = delete;

 private:
  Interpreter& interpreter_;
};

// A scope inside `parent` that is current while this lives.
class Interpreter::ScopeGuard {
 public:
  ScopeGuard(Interpreter& interpreter, std::shared_ptr<Scope> parent);
  ~ScopeGuard() { interpreter_.scope_ = std::move(before_); }
  ScopeGuard(const ScopeGuard&) = delete;
  ScopeGuard& operator=(const ScopeGuard&) = delete;

 private:
  Interpreter& interpreter_;
  std::shared_ptr<Scope> before_;
};

}  // namespace nibble::jinja
