#pragma once

#include "nibble/data/think.h"

#include <CLI/CLI.hpp>

namespace nibble::cli {

// --think
void add_think_option(CLI::App& verb, data::Think& think);

}  // namespace nibble::cli
