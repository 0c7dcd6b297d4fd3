#include <fmt/format.h>

#include "nibble/text/jinja/builtins.h"
#include "nibble/text/jinja/interpreter.h"
#include "nibble/text/jinja/operators.h"

namespace nibble::jinja {

Interpreter::Flow Interpreter::run_block(const Block& block) {
  const Depth depth(*this);
  for (const Statement& statement : block) {
    const Flow flow = run_statement(statement);
    if (flow != Flow::next) return flow;
  }
  return Flow::next;
}

Interpreter::Flow Interpreter::run_statement(const Statement& statement) {
  step();
  line_ = statement.line;
  return std::visit([&](const auto& node) { return run(node); }, statement.node);
}

void Interpreter::print(std::string_view text) {
  charge(text.size());
  if (output_->size() + text.size() > max_text) throw TemplateError("The output grows too long.");
  *output_ += text;
}

std::string Interpreter::capture(const Block& block) {
  std::string text;
  std::string* const before = std::exchange(output_, &text);
  run_block(block);
  output_ = before;
  return text;
}

Interpreter::Flow Interpreter::run(const Text& node) {
  print(node.text);
  return Flow::next;
}

Interpreter::Flow Interpreter::run(const Print& node) {
  const Value value = eval(*node.value);
  print(value.is_string() ? value.string() : to_text(value));
  return Flow::next;
}

Interpreter::Flow Interpreter::run(const If& node) {
  for (const auto& [condition, block] : node.branches) {
    if (eval(*condition).truthy()) return run_block(block);
  }
  return run_block(node.otherwise);
}

Interpreter::Flow Interpreter::run(const For& node) {
  const int line = line_;
  const Value iterable = eval(*node.iterable);
  line_ = line;
  run_loop(node, iterable, 0);
  return Flow::next;
}

void Interpreter::run_loop(const For& node, const Value& iterable, std::int64_t depth) {
  const auto loop = std::make_shared<Loop>();
  loop->depth = depth;
  List items = iterate(iterable);
  charge(items.size() * sizeof(Value));
  if (node.filter) {
    loop->fetch = filter_of(node, std::move(items), loop->items);
  } else {
    loop->items = std::move(items);
  }
  if (!loop_reaches(*loop, 0)) {
    const ScopeGuard guard(*this, scope_);
    run_block(node.otherwise);
    return;
  }
  if (node.recursive) loop->recurse = recursion_of(node, depth + 1);
  for (; loop_reaches(*loop, loop->index); ++loop->index) {
    step();
    const ScopeGuard guard(*this, scope_);
    scope_->variables.emplace("loop", loop);
    assign(node.target, loop->items[loop->index]);
    if (run_block(node.body) == Flow::break_loop) break;
  }
  loop->fetch = nullptr;
}

// Lives in the loop whose items it appends.
std::function<bool()> Interpreter::filter_of(const For& node, List source, List& items) {
  return [this, &node, &items, source = std::move(source), next = std::size_t{0}, outer = scope_]() mutable {
    while (next < source.size()) {
      const ScopeGuard inside(*this, outer);
      const Value& item = source[next++];
      assign(node.target, item);
      if (!eval(*node.filter).truthy()) continue;
      items.push_back(item);
      return true;
    }
    return false;
  };
}

// What loop(...) calls inside `for ... recursive`: the loop again, over the children.
std::shared_ptr<const Callable> Interpreter::recursion_of(const For& node, std::int64_t depth) {
  const std::weak_ptr<Scope> weak = scope_;
  return std::make_shared<const Callable>(
      Callable{.name = "loop", .call = [&node, weak, depth](Interpreter& self, const Arguments& arguments) -> Value {
                 const auto scope = weak.lock();
                 if (!scope || arguments.positional.size() != 1 || !arguments.named.empty()) {
                   throw TemplateError("loop() takes the one value to go on with, inside its loop.");
                 }
                 const ScopeGuard guard(self, scope);
                 std::string text;
                 std::string* const before = std::exchange(self.output_, &text);
                 self.run_loop(node, arguments.positional[0], depth);
                 self.output_ = before;
                 return text;
               }});
}

Interpreter::Flow Interpreter::run(const Set& node) {
  const Value value = eval(*node.value);
  assign(node.target, value);
  return Flow::next;
}

Interpreter::Flow Interpreter::run(const SetBlock& node) {
  std::string text;
  {
    const ScopeGuard guard(*this, scope_);
    text = capture(node.body);
  }
  Value value = std::move(text);
  if (node.filters) value = apply_chain(*node.filters, std::move(value));
  assign(node.target, value);
  return Flow::next;
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (target.is_tuple) {
    const List items = iterate(value);
    if (items.size() != target.items.size()) {
      throw TemplateError(fmt::format("{} values cannot be unpacked into {} names.", items.size(),
                                      target.items.size()));
    }
    for (std::size_t i = 0; i < items.size(); ++i) assign(target.items[i], items[i]);
    return;
  }
  if (target.attribute.empty()) {
    scope_->variables[target.name] = value;
    return;
  }
  const Value object = eval_node(Name{target.name});
  if (!object.is(Kind::namespace_)) {
    throw TemplateError(fmt::format("Only attributes of a namespace can be set, '{}' is a {}.", target.name,
                                    name_of(object.kind())));
  }
  object.name_space().attributes.set(target.attribute, value);
}

Interpreter::Flow Interpreter::run(const Macro& node) {
  scope_->variables[node.macro->name] = macro_value(node.macro);
  return Flow::next;
}

Value Interpreter::macro_value(std::shared_ptr<const MacroBody> macro) {
  // The scope holds the macro, so the macro must not hold the scope.
  const std::weak_ptr<Scope> weak = scope_;
  return std::make_shared<const Callable>(
      Callable{.name = macro->name, .call = [macro, weak](Interpreter& self, const Arguments& arguments) {
                 const auto scope = weak.lock();
                 if (!scope) {
                   throw TemplateError(fmt::format("'{}' is called outside of where it was made.", macro->name));
                 }
                 return self.call_macro(*macro, scope, arguments);
               }});
}

Value Interpreter::call_macro(const MacroBody& macro, const std::shared_ptr<Scope>& scope,
                              const Arguments& arguments) {
  const Depth depth(*this);
  const ScopeGuard guard(*this, scope);
  bind_parameters(macro, arguments);
  return capture(macro.body);
}

void Interpreter::bind_parameters(const MacroBody& macro, const Arguments& arguments) {
  auto& variables = scope_->variables;
  if (arguments.positional.size() > macro.parameters.size()) {
    throw TemplateError(fmt::format("'{}' takes at most {} arguments, {} were given.", macro.name,
                                    macro.parameters.size(), arguments.positional.size()));
  }
  variables["caller"] = Value::undefined("'caller'");
  std::vector<bool> given(macro.parameters.size(), false);
  for (std::size_t i = 0; i < arguments.positional.size(); ++i) {
    variables[macro.parameters[i].name] = arguments.positional[i];
    given[i] = true;
  }
  for (const auto& [name, value] : arguments.named) {
    std::size_t i = 0;
    while (i < macro.parameters.size() && macro.parameters[i].name != name) ++i;
    if (i < macro.parameters.size() && given[i]) {
      throw TemplateError(fmt::format("'{}' is given '{}' twice.", macro.name, name));
    }
    if (i == macro.parameters.size() && name != "caller") {
      throw TemplateError(fmt::format("'{}' has no parameter '{}'.", macro.name, name));
    }
    if (i < macro.parameters.size()) given[i] = true;
    variables[name] = value;
  }
  for (std::size_t i = 0; i < macro.parameters.size(); ++i) {
    const Parameter& parameter = macro.parameters[i];
    if (given[i]) continue;
    variables[parameter.name] = parameter.fallback
                                    ? eval(*parameter.fallback)
                                    : Value::undefined(fmt::format("The parameter '{}'", parameter.name));
  }
}

Interpreter::Flow Interpreter::run(const CallBlock& node) {
  const auto& call_node = std::get<Call>(node.call->node);
  const Value callee = eval(*call_node.callee);
  Arguments arguments = eval_arguments(call_node.arguments);
  arguments.named.emplace_back("caller", macro_value(node.caller));
  print(to_text(call(callee, arguments)));
  return Flow::next;
}

Interpreter::Flow Interpreter::run(const FilterBlock& node) {
  std::string text;
  {
    const ScopeGuard guard(*this, scope_);
    text = capture(node.body);
  }
  print(to_text(apply_chain(*node.filters, std::move(text))));
  return Flow::next;
}

Interpreter::Flow Interpreter::run(const With& node) {
  std::vector<Value> values;
  for (const auto& binding : node.bindings) values.push_back(eval(*binding.second));
  const ScopeGuard guard(*this, scope_);
  for (std::size_t i = 0; i < values.size(); ++i) assign(node.bindings[i].first, values[i]);
  return run_block(node.body);
}

Interpreter::Flow Interpreter::run(const Generation& node) {
  const ScopeGuard guard(*this, scope_);
  const bool at_root = output_ == &root_output_;
  const std::size_t begin = output_->size();
  const Flow flow = run_block(node.body);
  if (at_root) {
    rendered_.generated.emplace_back(begin, output_->size());
  } else {
    rendered_.lost_generation = true;
  }
  return flow;
}

}  // namespace nibble::jinja
