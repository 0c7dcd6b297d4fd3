#pragma once

namespace nibble::text {

// Unicode properties of a code point as `tokenizers` 0.23 tests them: by Rust's standard library (Unicode 17) and regex crate, and
// punctuation by tables of Unicode 8.
bool is_whitespace(char32_t code);   // White_Space
bool is_numeric(char32_t code);      // categories Nd, Nl, No
bool is_punctuation(char32_t code);  // the P categories, and ASCII's punctuation
bool is_mark(char32_t code);         // the M categories
bool is_word(char32_t code);         // what \w matches: Alphabetic, M, Nd, Pc and Join_Control

}  // namespace nibble::text
