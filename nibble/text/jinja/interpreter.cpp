#include "nibble/text/jinja/interpreter.h"

#include <fmt/format.h>

#include "nibble/base/error.h"
#include "nibble/text/jinja/builtins.h"
#include "nibble/text/jinja/operators.h"

namespace nibble::jinja {
namespace {

constexpr int max_depth = 1500;
constexpr std::size_t max_steps = 5'000'000;
constexpr std::size_t max_charged = std::size_t{2} << 30;

bool holds(CompareOp op, const Value& a, const Value& b) {
  switch (op) {
    case CompareOp::equal: return equal(a, b);
    case CompareOp::not_equal: return !equal(a, b);
    case CompareOp::less: return compare(a, b) < 0;
    case CompareOp::less_equal: return compare(a, b) <= 0;
    case CompareOp::greater: return compare(a, b) > 0;
    case CompareOp::greater_equal: return compare(a, b) >= 0;
    case CompareOp::in: return contains(b, a);
    case CompareOp::not_in: return !contains(b, a);
  }
  return false;
}

std::size_t size_in_memory(const Value& value) {
  if (value.is_string()) return value.string().size();
  if (value.is_sequence()) return value.items().size() * sizeof(Value);
  return 0;
}

}  // namespace

Interpreter::Depth::Depth(Interpreter& interpreter) : interpreter_(interpreter) {
  if (interpreter.depth_ >= max_depth) {
    throw TemplateError("The template recurses too deeply.");
  }
  ++interpreter.depth_;
}

Interpreter::ScopeGuard::ScopeGuard(Interpreter& interpreter, std::shared_ptr<Scope> parent)
    : interpreter_(interpreter), before_(interpreter.scope_) {
  interpreter.scope_ = std::make_shared<Scope>(Scope{.parent = std::move(parent), .variables = {}});
}

Interpreter::Interpreter(const Block& program, const Dict& variables, std::time_t now)
    : program_(program), now_(now), scope_(std::make_shared<Scope>()) {
  for (const auto& [name, value] : variables.entries()) scope_->variables.emplace(name.string(), value);
}

Rendered Interpreter::run() {
  try {
    run_block(program_);
  } catch (const TemplateError& error) {
    fail<DataError>("chat_template", "line {}: {}", line_, error.what());
  }
  rendered_.text = std::move(root_output_);
  return std::move(rendered_);
}

void Interpreter::charge(std::size_t bytes) {
  charged_ += bytes;
  if (bytes > max_text || charged_ > max_charged) throw TemplateError("The template makes too much text.");
}

void Interpreter::step() {
  if (++steps_ > max_steps) throw TemplateError("The template runs too long.");
}

Value Interpreter::apply_filter(std::string_view name, const Value& operand, const Arguments& arguments) {
  const Builtin* filter = find_filter(name);
  if (filter == nullptr) throw TemplateError(fmt::format("There is no filter '{}'.", name));
  step();
  Value result = filter->apply(*this, operand, Bound(arguments, filter->name, filter->parameters));
  charge(size_in_memory(result));
  return result;
}

bool Interpreter::apply_test(std::string_view name, const Value& operand, const Arguments& arguments) {
  const Builtin* test = find_test(name);
  if (test == nullptr) throw TemplateError(fmt::format("There is no test '{}'.", name));
  step();
  return test->apply(*this, operand, Bound(arguments, test->name, test->parameters)).truthy();
}

Value Interpreter::eval(const Expr& expr) {
  const Depth depth(*this);
  step();
  line_ = expr.line;
  return std::visit([&](const auto& node) { return eval_node(node); }, expr.node);
}

Value Interpreter::eval_node(const Name& node) {
  for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->parent.get()) {
    const auto found = scope->variables.find(node.name);
    if (found != scope->variables.end()) return found->second;
  }
  return find_global(node.name);
}

Value Interpreter::eval_node(const ListLiteral& node) {
  List items;
  items.reserve(node.items.size());
  for (const ExprPtr& item : node.items) items.push_back(eval(*item));
  charge(items.size() * sizeof(Value));
  return node.is_tuple ? Value::tuple(std::move(items)) : Value::list(std::move(items));
}

Value Interpreter::eval_node(const DictLiteral& node) {
  Dict dict;
  for (const auto& [key, value] : node.entries) {
    Value key_value = eval(*key);
    dict.set(std::move(key_value), eval(*value));
  }
  charge(dict.size() * sizeof(Value) * 4);
  return Value::dict(std::move(dict));
}

Value Interpreter::eval_node(const Unary& node) {
  const Value operand = eval(*node.operand);
  if (node.op == UnaryOp::logical_not) return !operand.truthy();
  Value negated = negate(operand);
  return node.op == UnaryOp::negate ? negated : negate(negated);
}

Value Interpreter::eval_node(const Binary& node) {
  const int line = line_;
  const Value left = eval(*node.left);
  const Value right = eval(*node.right);
  line_ = line;
  Value result = binary(node.op, left, right);
  charge(size_in_memory(result));
  return result;
}

Value Interpreter::eval_node(const Concat& node) {
  std::string text;
  for (const ExprPtr& part : node.parts) {
    text += to_text(eval(*part));
    if (text.size() > max_text) throw TemplateError("A string grows too long.");
  }
  charge(text.size());
  return text;
}

Value Interpreter::eval_node(const Logic& node) {
  Value left = eval(*node.left);
  return left.truthy() == node.is_and ? eval(*node.right) : left;
}

Value Interpreter::eval_node(const Compare& node) {
  const int line = line_;
  Value left = eval(*node.first);
  for (const auto& [op, operand] : node.rest) {
    Value right = eval(*operand);
    line_ = line;
    if (!holds(op, left, right)) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::eval_node(const Conditional& node) {
  if (eval(*node.condition).truthy()) return eval(*node.then);
  if (node.otherwise) return eval(*node.otherwise);
  return Value::undefined("The value of an 'if' without 'else'");
}

Value Interpreter::eval_node(const GetAttribute& node) {
  const int line = line_;
  const Value object = eval(*node.object);
  line_ = line;
  return get_attribute(object, node.name);
}

Value Interpreter::eval_node(const GetItem& node) {
  const int line = line_;
  const Value object = eval(*node.object);
  const Value index = eval(*node.index);
  line_ = line;
  return get_item(object, index);
}

Value Interpreter::eval_node(const Slice& node) {
  const auto bound = [&](const ExprPtr& expr) { return expr ? eval(*expr) : Value::none(); };
  const int line = line_;
  const Value object = eval(*node.object);
  const Value begin = bound(node.begin);
  const Value end = bound(node.end);
  const Value step_size = bound(node.step);
  line_ = line;
  Value result = slice(object, begin, end, step_size);
  charge(size_in_memory(result));
  return result;
}

Value Interpreter::eval_node(const Call& node) {
  const int line = line_;
  const Value callee = eval(*node.callee);
  const Arguments arguments = eval_arguments(node.arguments);
  line_ = line;
  return call(callee, arguments);
}

Value Interpreter::call(const Value& callee, const Arguments& arguments) {
  if (callee.is(Kind::loop) && callee.loop().recurse) return callee.loop().recurse->call(*this, arguments);
  if (callee.is_undefined()) throw TemplateError(callee.undefined_message());
  if (!callee.is(Kind::callable)) throw TemplateError(fmt::format("A {} cannot be called.", name_of(callee.kind())));
  Value result = callee.callable().call(*this, arguments);
  charge(size_in_memory(result));
  return result;
}

Value Interpreter::eval_node(const FilterCall& node) {
  const int line = line_;
  const Value operand = eval(*node.operand);
  const Arguments arguments = eval_arguments(node.arguments);
  line_ = line;
  return apply_filter(node.name, operand, arguments);
}

Value Interpreter::eval_node(const TestCall& node) {
  const int line = line_;
  const Value operand = eval(*node.operand);
  const Arguments arguments = eval_arguments(node.arguments);
  line_ = line;
  return apply_test(node.name, operand, arguments);
}

Value Interpreter::apply_chain(const Expr& chain, Value input) {
  const auto& filter = std::get<FilterCall>(chain.node);
  if (filter.operand) input = apply_chain(*filter.operand, std::move(input));
  const Arguments arguments = eval_arguments(filter.arguments);
  line_ = chain.line;
  return apply_filter(filter.name, input, arguments);
}

Arguments Interpreter::eval_arguments(const CallArguments& arguments) {
  Arguments result;
  result.positional.reserve(arguments.positional.size());
  for (const ExprPtr& argument : arguments.positional) result.positional.push_back(eval(*argument));
  for (const auto& [name, argument] : arguments.named) result.named.emplace_back(name, eval(*argument));
  return result;
}

}  // namespace nibble::jinja
