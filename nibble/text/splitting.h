#pragma once

#include <string_view>
#include <vector>

#include "nibble/text/aligned_text.h"

namespace nibble::text {

// What becomes of the delimiters (the matches) when a piece is split.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

// A part of a piece, which either matched or lies between matches.
struct SplitPart {
  ByteSpan span;
  bool is_match;
};

// Appends the pieces that `parts`, which follow on each other, give under `behavior`; empty ones are left out.
void join_parts(const std::vector<SplitPart>& parts, SplitBehavior behavior, std::vector<ByteSpan>& out);

}  // namespace nibble::text
