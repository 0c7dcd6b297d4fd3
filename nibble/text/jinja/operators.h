#pragma once

#include "nibble/text/jinja/ast.h"
#include "nibble/text/jinja/value.h"

// The operators on values as Python defines them. Errors are TemplateError.
namespace nibble::jinja {

// No single string that a template makes may be longer.
constexpr std::size_t max_text = std::size_t{64} << 20;

Value binary(BinaryOp op, const Value& a, const Value& b);
Value negate(const Value& a);
bool contains(const Value& container, const Value& item);
// object[index] without the fall-back to attributes; nothing where there is no such item.
const Value* find_item(const Value& object, const Value& index, Value& storage);
// object[begin:end:step]; an absent bound is none.
Value slice(const Value& object, const Value& begin, const Value& end, const Value& step);
// text % arguments: %s %r %d %i %f %e %g %x %c %% with flags, width and precision.
std::string format_percent(const std::string& text, const Value& arguments);

}  // namespace nibble::jinja
