#pragma once

#include "nibble/data/row.h"

namespace nibble::data {

// What the forms of rows share. All throw DataError with a sentence that names no file.

// The row's value of a key, which must be there.
const OrderedJson& member(const OrderedJson& row, const char* key);

OrderedJson message(std::string_view role, const OrderedJson& content);

// The column "tools", a list of schemas or the text of one; null where there is none.
OrderedJson tools_of(const OrderedJson& row);

bool has_calls(const OrderedJson& turn);

// A list of messages with roles, contents, calls and flags checked; `key` names it in errors.
OrderedJson checked_messages(const OrderedJson& value, const char* key);

// A chat of such messages, whose flags "train" and "weight" become Chat::counted.
Chat make_chat(OrderedJson messages, OrderedJson tools, std::size_t first_completion = 0);

PreferencePair read_preference(const OrderedJson& row);

}  // namespace nibble::data
