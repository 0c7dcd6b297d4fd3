#pragma once

#include "tests/support/program.h"

namespace nibble::test {

// Runs the nibble that was built with these arguments and this standard input.
inline ProgramResult run_nibble(const std::vector<std::string>& arguments, const std::string& input = {}) {
  return run_program(NIBBLE_PROGRAM, arguments, input);
}

}  // namespace nibble::test
