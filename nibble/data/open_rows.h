#pragma once

#include <string>

#include "nibble/io/file.h"

namespace nibble::data {

// Rows as JSON Lines, to be read at any offset, and the name that they have for a reader.
struct RowText {
  File file;
  std::string name;
};

// The rows of a file. One that is packed with gzip or zstd (told by its first bytes), that is a table (by its name: .csv, .tsv,
// .tab, and .gz or .zst behind it), or that can be read once ("-", standard input, and named pipes) is written into a temporary
// file first. What has no name is a table where its first line does not begin with "{" or "[" and has a tab or a comma. Lines keep
// their numbers. Throws DataError naming the file; Parquet is refused with what converts it.
RowText open_rows(const fs::path& path);

}  // namespace nibble::data
