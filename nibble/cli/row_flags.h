#pragma once

#include "nibble/data/column_map.h"
#include "nibble/data/data_files.h"
#include "nibble/data/think.h"

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace nibble::cli {

// What a verb reads its rows from.
struct RowFlags {
  std::vector<std::string> data, map;

  // --data and --map.
  CLI::Option* add_data(CLI::App& verb, const std::string& rows);
  void add_map(CLI::App& verb);
  // Throw UsageError.
  data::DataFiles files() const { return data::DataFiles::parse(data); }
  // Files whose rows count once each: weights are refused.
  data::DataFiles unweighted_files() const;
  data::ColumnMap columns() const { return data::ColumnMap::parse(map); }
};

// --think
void add_think_option(CLI::App& verb, data::Think& think);
// --system, of verbs that prepare rows.
void add_system_option(CLI::App& verb, std::string& system);

}  // namespace nibble::cli
