#pragma once

#include "nibble/text/aligned_text.h"

namespace nibble::text {

enum class UnicodeForm { nfc, nfd, nfkc, nfkd };

// Brings the text into a normalization form (Unicode Annex 15). Characters that compose or reorder together stand for
// all of their source; every other one keeps its own place.
void to_unicode_form(AlignedText& text, UnicodeForm form);

}  // namespace nibble::text
