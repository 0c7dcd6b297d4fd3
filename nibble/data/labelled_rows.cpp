#include "nibble/data/labelled_rows.h"

#include <set>

#include "nibble/base/error.h"
#include "nibble/data/line_reader.h"
#include "nibble/data/open_rows.h"

namespace nibble::data {

LabelledFile read_labelled_file(const fs::path& path, bool skip_bad_rows, const ColumnMap& map) {
  const RowText text = open_rows(path);
  LineReader reader(text.file, text.name);
  LabelledFile result;
  for (Line line; reader.next(line);) {
    if (line.text.find_first_not_of(" \t") == std::string::npos) continue;
    try {
      auto content = read_row(map.apply(parse_row(line.text)), RowForm::classification);
      result.rows.push_back({.line = line.number, .content = std::get<LabelledInput>(std::move(content))});
    } catch (const DataError& error) {
      ++result.bad_rows;
      if (skip_bad_rows) continue;
      fail<DataError>("data", "{}, line {}: {}", text.name, line.number, sentence_of(error));
    }
  }
  check<DataError>(!result.rows.empty(), "data", "{}: The file has no row with \"input\" and \"label\".",
                   text.name);
  return result;
}

std::vector<std::string> labels_of(std::span<const LabelledRow> rows) {
  std::set<std::string> labels;
  for (const auto& row : rows) labels.insert(row.content.label);
  return {labels.begin(), labels.end()};
}

}  // namespace nibble::data
