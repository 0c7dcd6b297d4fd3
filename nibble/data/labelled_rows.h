#pragma once

#include <span>
#include <vector>

#include "nibble/data/column_map.h"
#include "nibble/data/row.h"
#include "nibble/io/file.h"

namespace nibble::data {

struct LabelledRow {
  std::uint64_t line = 0;  // of the file, from 1
  LabelledInput content;
};

struct LabelledFile {
  std::vector<LabelledRow> rows;
  std::uint64_t bad_rows = 0;  // left out
};

// All rows of a file of the form `classification`. DataError names file and line of one that is not, unless bad
// rows are to be skipped, and a file without rows.
LabelledFile read_labelled_file(const fs::path& path, bool skip_bad_rows = false, const ColumnMap& map = {});

// Each label once, in the order of their bytes.
std::vector<std::string> labels_of(std::span<const LabelledRow> rows);

}  // namespace nibble::data
