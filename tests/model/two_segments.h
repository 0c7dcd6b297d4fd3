#pragma once

#include "nibble/model/stream.h"

#include <cstdint>
#include <vector>

namespace nibble::test {

// Made-up tokens in two segments, the second of which begins at `second`; every token but the last of each is trained.
struct TwoSegments {
  std::vector<std::uint32_t> ids, position, begin, end, rows, labels;

  TwoSegments(std::uint32_t tokens, std::uint32_t second, std::uint32_t vocabulary) {
    for (std::uint32_t i = 0; i < tokens; ++i) {
      const std::uint32_t from = i < second ? 0 : second, to = i < second ? second : tokens;
      ids.push_back((i * 2654435761u >> 7) % vocabulary);
      position.push_back(i - from);
      begin.push_back(from);
      end.push_back(to);
      if (i + 1 < to) rows.push_back(i);
    }
    for (const std::uint32_t row : rows) labels.push_back(ids[row + 1]);
  }
  TokenStream stream() const {
    return {.tokens = ids, .position = position, .segment_begin = begin, .segment_end = end, .label_rows = rows, .labels = labels};
  }
};

}  // namespace nibble::test
