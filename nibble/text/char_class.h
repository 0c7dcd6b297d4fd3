#pragma once

namespace nibble::text {

// Unicode properties of a code point, as Rust's standard library and regex crate define them: that is what `tokenizers`
// tests by.
bool is_whitespace(char32_t code);   // White_Space
bool is_numeric(char32_t code);      // categories Nd, Nl, No
bool is_punctuation(char32_t code);  // the P categories, and ASCII's punctuation
bool is_mark(char32_t code);         // the M categories
bool is_word(char32_t code);         // what \w matches: Alphabetic, M, Nd, Pc and Join_Control

}  // namespace nibble::text
