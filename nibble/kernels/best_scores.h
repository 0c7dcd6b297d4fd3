#pragma once

#include "nibble/kernels/kernel.h"

#include <optional>
#include <span>
#include <vector>

namespace nibble {

// A row's list: how many scores reach the bound, which may be more than it has room for; the bound; whether all of the row are finite; a
// place for choose_token.h; and pairs of index and score.
constexpr std::uint32_t best_list_header = 4, best_list_room = 1024, best_list_words = best_list_header + 2 * best_list_room;

// The best scores of rows of a vocabulary, so that few bytes need be read back where all are some hundred thousand.
struct BestScoresRoom {
  Tensor largest;  // (rows, blocks) i32: of each block
  Tensor found;    // (rows, best_list_words) u32
};
BestScoresRoom make_best_scores_room(gpu::Device& device, std::uint32_t rows, std::uint32_t scores);
std::uint64_t best_scores_room_bytes(std::uint32_t rows, std::uint32_t scores);

// How many of the best of so many scores are found at least.
std::uint32_t best_scores_found(std::uint32_t scores);

// Lists of the rows of `scores` (rows, n) f32, of at most as many rows as there is room for.
struct BestScores {
  Tensor scores;
  BestScoresRoom room;
};
void record(gpu::Recorder& recorder, const BestScores& op);

struct ScoredToken {
  std::uint32_t id;
  float score;
};
// All of a row's scores from `bound` on, by their ids.
struct BestOfRow {
  std::vector<ScoredToken> tokens;
  float bound = 0;
};
// Whether all of a row are finite, by its list.
bool is_finite(std::span<const std::uint32_t> list);
// From a row's list. Empty where not all of the row are finite, or more than there is room for reach the bound.
std::optional<BestOfRow> best_of(std::span<const std::uint32_t> list);

}  // namespace nibble
