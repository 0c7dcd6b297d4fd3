#pragma once

#include <ctime>
#include <string_view>

#include "nibble/text/jinja/ast.h"
#include "nibble/text/jinja/interpreter.h"

namespace nibble::jinja {

// A chat template in the language of jinja2 3.1, set up as transformers does: trim_blocks, lstrip_blocks, immutable
// sandbox, loop controls, generation blocks. No inheritance and no imports.
class Template {
 public:
  // Throws DataError "[chat_template] line N: ..." for a fault or a construct that is not supported.
  static Template parse(std::string_view source);

  // Throws DataError likewise. May be called from several threads.
  Rendered render(const Dict& variables, std::time_t now) const;

 private:
  Block program_;
};

}  // namespace nibble::jinja
