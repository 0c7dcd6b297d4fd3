#pragma once

#include <functional>
#include <string_view>

#include "nibble/io/spool.h"

namespace nibble::data {

// Begins a line that stands for a row which could not be made; its sentence follows. No JSON begins so.
constexpr char bad_row_mark = '\x1e';

// A table with a header (RFC 4180) as JSON Lines: each record becomes an object of strings by the names of the columns. A row
// stands in the line that its record begins in, and empty lines stand for the header and for line feeds inside of quotes, so
// that numbers of lines are those of the table. Ends of lines are \n or \r\n; a byte order mark is passed over; a quote inside of
// a field that does not begin with one is an ordinary character. A record with another number of fields than the header, or with
// text that is not UTF-8, becomes a line with bad_row_mark. Throws DataError with `name` and the line where the header has no
// name, one twice or too many, where a quote is not closed, and where a record is longer than max_line_bytes.
void csv_to_rows(const ByteReader& in, char separator, const fs::path& name, const std::function<void(std::string_view)>& out);

}  // namespace nibble::data
