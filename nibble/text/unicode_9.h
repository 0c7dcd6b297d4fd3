#pragma once

namespace nibble::text {

// Python's `tokenizers` normalizes by the tables of Unicode 9.0. To give the same ids, nibble leaves what was added
// later as it is: such a character neither decomposes nor composes, moves or counts as a mark. True for those of them
// that Unicode 15 would treat otherwise.
bool is_later_than_unicode_9(char32_t code);

}  // namespace nibble::text
