#include "nibble/text/jinja/template.h"

#include "nibble/base/error.h"
#include "nibble/text/jinja/lexer.h"
#include "nibble/text/jinja/parser.h"

namespace nibble::jinja {

Template Template::parse(std::string_view source) {
  constexpr std::size_t max_source = std::size_t{4} << 20;
  check<DataError>(source.size() <= max_source, "chat_template", "The template has {} bytes, at most {} are allowed.",
                   source.size(), max_source);
  Template result;
  result.program_ = Parser(tokenize(source)).parse();
  return result;
}

Rendered Template::render(const Dict& variables, std::time_t now) const {
  return Interpreter(program_, variables, now).run();
}

}  // namespace nibble::jinja
