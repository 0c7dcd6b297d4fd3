#pragma once

#include <CLI/CLI.hpp>

#include <filesystem>
#include <string>

namespace nibble::cli {

// Options of a verb as `name = value` lines, the part of TOML that they need: strings, numbers, true and false, arrays of these
// on one line, comments.

// All options with the values that hold, apart from those of `leave_out` and those without a value.
std::string config_text(const CLI::App& verb, const std::vector<std::string>& leave_out);

// Declares --config: a file gives the options that the command line does not. Declare it before the verb's other options
// outside of groups. An unknown name or a bad line is a usage error with the line's number.
void add_config_option(CLI::App& verb);

}  // namespace nibble::cli
