#pragma once

#include <span>
#include <string>
#include <vector>

#include "nibble/data/row.h"

namespace nibble::data {

// Which columns of a row stand for what, as "question=user", "answer=assistant".
class ColumnMap {
 public:
  ColumnMap() = default;
  // "COLUMN=NAME" each, NAME being user, assistant or a key of a form of rows. Throws UsageError otherwise, where a name comes
  // twice, and where user and assistant are not both there or come with the keys of a form.
  static ColumnMap parse(std::span<const std::string> entries);

  bool empty() const { return entries_.empty(); }
  // "question=user,answer=assistant"
  std::string text() const;
  // The row with the mapped columns alone, and "tools"; as it is where the map is empty. user and assistant become the
  // messages of a chat, behind a system message where there is one. Throws DataError naming a column that the row has not.
  OrderedJson apply(OrderedJson row) const;

 private:
  struct Entry {
    std::string column, name;
  };

  std::vector<Entry> entries_;
  bool chat_ = false;  // user and assistant are mapped
};

}  // namespace nibble::data
