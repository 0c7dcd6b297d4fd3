#include "nibble/text/splitting.h"

namespace nibble::text {
namespace {

void push(ByteSpan span, std::vector<ByteSpan>& out) {
  if (span.begin != span.end) out.push_back(span);
}

// Whether the boundary between two neighbouring parts goes away.
bool joined(const SplitPart& left, const SplitPart& right, SplitBehavior behavior) {
  switch (behavior) {
    case SplitBehavior::contiguous: return left.is_match == right.is_match;
    case SplitBehavior::merged_with_previous: return right.is_match && !left.is_match;
    case SplitBehavior::merged_with_next: return left.is_match && !right.is_match;
    default: return false;
  }
}

}  // namespace

void join_parts(const std::vector<SplitPart>& parts, SplitBehavior behavior, std::vector<ByteSpan>& out) {
  ByteSpan current;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const SplitPart& part = parts[i];
    if (behavior == SplitBehavior::removed && part.is_match) continue;
    if (i > 0 && joined(parts[i - 1], part, behavior)) {
      current.end = part.span.end;
      continue;
    }
    push(current, out);
    current = part.span;
  }
  push(current, out);
}

}  // namespace nibble::text
