#include <fmt/format.h>

#include <array>
#include <ctime>

#include "nibble/text/jinja/builtins.h"
#include "nibble/text/jinja/interpreter.h"

namespace nibble::jinja {
namespace {

Value range(Interpreter& interpreter, const Arguments& arguments) {
  constexpr std::int64_t max_range = 100000;  // as in jinja2's sandbox
  if (!arguments.named.empty() || arguments.positional.empty() || arguments.positional.size() > 3) {
    throw TemplateError("range() takes one to three integers.");
  }
  std::array<std::int64_t, 3> given{0, 0, 1};
  for (std::size_t i = 0; i < arguments.positional.size(); ++i) {
    if (!arguments.positional[i].is_integral()) throw TemplateError("range() takes one to three integers.");
    given[i] = arguments.positional[i].integral();
  }
  if (arguments.positional.size() == 1) given = {0, given[0], 1};
  const auto [begin, end, step] = given;
  if (step == 0) throw TemplateError("The step of range() cannot be zero.");
  List items;
  for (std::int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (static_cast<std::int64_t>(items.size()) == max_range) {
      throw TemplateError(fmt::format("range() gives at most {} numbers.", max_range));
    }
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  interpreter.charge(items.size() * sizeof(Value));
  return Value::list(std::move(items));
}

// dict(mapping or pairs, name=value, ...)
Dict dict_of(const Arguments& arguments, std::string_view function) {
  if (arguments.positional.size() > 1) throw TemplateError(fmt::format("{}() takes one value at most.", function));
  Dict dict;
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional[0];
    if (source.is_dict()) {
      dict = source.dict();
    } else {
      for (const Value& pair : iterate(source)) {
        const List items = iterate(pair);
        if (items.size() != 2) throw TemplateError(fmt::format("{}() needs pairs of key and value.", function));
        dict.set(items[0], items[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) dict.set(name, value);
  return dict;
}

Value make_dict(Interpreter&, const Arguments& arguments) { return Value::dict(dict_of(arguments, "dict")); }

Value make_namespace(Interpreter&, const Arguments& arguments) {
  return std::make_shared<Namespace>(Namespace{dict_of(arguments, "namespace")});
}

Value raise_exception(Interpreter&, const Arguments& arguments) {
  throw TemplateError(fmt::format("The template refuses the conversation: {}",
                                  arguments.positional.empty() ? "" : to_text(arguments.positional[0])));
}

Value strftime_now(Interpreter& interpreter, const Arguments& arguments) {
  if (arguments.positional.size() != 1 || !arguments.positional[0].is_string()) {
    throw TemplateError("strftime_now() takes a format.");
  }
  const std::string& format = arguments.positional[0].string();
  if (format.size() > 1000) throw TemplateError("The format of strftime_now() is too long.");
  const std::time_t now = interpreter.now();
  std::tm parts{};
  localtime_r(&now, &parts);
  std::string text(format.size() * 64 + 64, '\0');
  text.resize(std::strftime(text.data(), text.size(), format.c_str(), &parts));
  return text;
}

using Function = Value (*)(Interpreter&, const Arguments&);

Value function_value(std::string_view name, Function function) {
  return std::make_shared<const Callable>(Callable{.name = std::string(name), .call = function});
}

}  // namespace

Value find_global(std::string_view name) {
  static constexpr std::pair<std::string_view, Function> functions[] = {{"range", range},
                                                                        {"dict", make_dict},
                                                                        {"namespace", make_namespace},
                                                                        {"raise_exception", raise_exception},
                                                                        {"strftime_now", strftime_now}};
  for (const auto& [known, function] : functions) {
    if (known == name) return function_value(name, function);
  }
  return Value::undefined(fmt::format("'{}'", name));
}

}  // namespace nibble::jinja
