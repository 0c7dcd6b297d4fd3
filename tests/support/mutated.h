#pragma once

#include <string>
#include <string_view>

#include "nibble/base/rng.h"

namespace nibble::test {

// One to four changes: a byte set, a bit turned, bytes taken out or put in, the end cut off.
inline std::string mutated(std::string text, Rng& rng) {
  static constexpr std::string_view likely = "{}[]:,\"0123456789-.eE\\ntf ";
  const auto changes = 1 + rng.below(4);
  for (std::uint32_t change = 0; change < changes && !text.empty(); ++change) {
    const std::size_t at = rng.below(static_cast<std::uint32_t>(text.size()));
    const char byte = likely[rng.below(static_cast<std::uint32_t>(likely.size()))];
    switch (rng.below(6)) {
      case 0: text[at] = byte; break;
      case 1: text[at] = static_cast<char>(text[at] ^ (1 << rng.below(8))); break;
      case 2: text.erase(at, 1 + rng.below(3)); break;
      case 3: text.insert(at, 1, byte); break;
      case 4: text.insert(at, text.substr(at, rng.below(20))); break;
      default: text.resize(at); break;
    }
  }
  return text;
}

}  // namespace nibble::test
