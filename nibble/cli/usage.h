#pragma once

#include <CLI/CLI.hpp>

#include <memory>
#include <string>

namespace nibble::cli {

// Lists verbs by the first sentence of their manual alone.
std::shared_ptr<CLI::FormatterBase> help_format();

// Has options of whole numbers refuse all else, negative ones too, which would wrap around, and those of others what is not finite.
void check_numbers(CLI::App& app);

// Numbers above 0, or from 0 on. CLI11's own name the type's largest number when they refuse.
CLI::Validator above_zero();
CLI::Validator from_zero();

// Turns a size as 5GB or 2GiB into bytes.
CLI::Validator size_in_bytes();

// What is wrong with the command line, in one sentence that names the nearest verb or option where a word is unknown.
std::string usage_error(const CLI::App& app, const CLI::ParseError& error);

}  // namespace nibble::cli
