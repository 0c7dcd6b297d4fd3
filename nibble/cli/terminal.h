#pragma once

#include <cstdio>
#include <string>
#include <string_view>

namespace nibble::cli {

bool is_terminal(std::FILE* file);

// The text with control characters that could steer a terminal written as <1B>; lines and tabs stay.
std::string printable(std::string_view text);

}  // namespace nibble::cli
