#pragma once

#include "nibble/kernels/expert_rows.h"
#include "tests/support/gpu_test.h"

#include <algorithm>
#include <numeric>

namespace nibble::test {

// Each token's different experts, from a random order of them; expert 0 is left out where there are others, so that one has no rows.
inline std::vector<std::uint32_t> random_choices(std::uint32_t tokens, std::uint32_t experts, std::uint32_t per_token, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::uint32_t> choices;
  std::vector<std::uint32_t> order(experts);
  std::iota(order.begin(), order.end(), 0u);
  const std::uint32_t first = experts > per_token ? 1 : 0;
  for (std::uint32_t t = 0; t < tokens; ++t) {
    for (std::uint32_t j = 0; j < per_token; ++j) {
      std::swap(order[first + j], order[first + j + rng.below(experts - first - j)]);
      choices.push_back(order[first + j]);
    }
  }
  return choices;
}

// The rows of such choices, on the host and on the device.
struct SortedRows {
  std::vector<std::uint32_t> expert_of_row, slot_of_row;
  ExpertRows rows;

  SortedRows(std::uint32_t tokens, std::uint32_t experts, std::uint32_t per_token, std::uint64_t seed = 1, std::uint32_t tile_rows = 0) {
    const auto choices = random_choices(tokens, experts, per_token, seed);
    slot_of_row.resize(choices.size());
    std::iota(slot_of_row.begin(), slot_of_row.end(), 0u);
    std::stable_sort(slot_of_row.begin(), slot_of_row.end(), [&](auto a, auto b) { return choices[a] < choices[b]; });
    for (const auto slot : slot_of_row) expert_of_row.push_back(choices[slot]);
    gpu::Recorder recorder(device());
    rows = record(recorder, ExpertSort{.expert = upload_u32(choices).view({tokens, per_token}), .experts = experts,
                                       .room = make_expert_rows_room(device(), experts, tokens * per_token), .tile_rows = tile_rows});
    recorder.submit();
  }
  std::uint32_t token_of_row(std::size_t row) const { return slot_of_row[row] / rows.per_token; }
};

}  // namespace nibble::test
