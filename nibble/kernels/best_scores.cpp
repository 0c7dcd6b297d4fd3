#include "nibble/kernels/best_scores.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>
#include <bit>

namespace nibble {
namespace {

constexpr std::string_view in_best_scores = "best_scores";
constexpr std::uint32_t scores_workgroup = 256, most_score_blocks = 192, most_best = 64;

// Few enough that each workgroup compares all of their largest, and more than are wanted.
struct BlocksOfScores {
  std::uint32_t size, count;

  explicit BlocksOfScores(std::uint32_t scores) {
    constexpr std::uint32_t step = 32;
    size = ((scores + most_score_blocks - 1) / most_score_blocks + step - 1) / step * step;
    count = (scores + size - 1) / size;
  }
};

}  // namespace

std::uint32_t best_scores_found(std::uint32_t scores) { return std::clamp(BlocksOfScores(scores).count / 2, 1u, most_best); }

BestScoresRoom make_best_scores_room(gpu::Device& device, std::uint32_t rows, std::uint32_t scores) {
  return {.largest = device.tensor(DType::i32, {rows, BlocksOfScores(scores).count}, "largest scores"),
          .found = device.tensor(DType::u32, {rows, best_list_words}, "best scores")};
}

std::uint64_t best_scores_room_bytes(std::uint32_t rows, std::uint32_t scores) {
  return gpu::buffer_bytes(4ull * rows * BlocksOfScores(scores).count) + gpu::buffer_bytes(4ull * rows * best_list_words);
}

void record(gpu::Recorder& recorder, const BestScores& op) {
  const std::uint32_t rows = op.scores.dim(0), scores = op.scores.dim(1);
  const BlocksOfScores blocks(scores);
  check(op.scores.dtype() == DType::f32 && op.room.largest.dim(1) == blocks.count && rows <= op.room.found.dim(0), in_best_scores,
        "Scores {} do not fit the room for {}.", op.scores.shape_text().str(), op.room.largest.shape_text().str());
  struct LargestParams {
    std::uint32_t scores, blocks, block;
  };
  struct BestParams {
    std::uint32_t scores, blocks, block, count;
  };
  gpu::Device& device = recorder.device();
  gpu::Prelude prelude;
  prelude.constant("WORKGROUP", scores_workgroup).constant("MOST_BLOCKS", most_score_blocks).constant("ROOM", best_list_room).constant("FOUND", best_list_words);
  const double bytes = 4.0 * rows * scores;
  recorder.dispatch(kernel(device, "block_largest", prelude, {"score_order"}), {gpu::read(op.scores), gpu::write(op.room.largest), gpu::write(op.room.found)},
                    LargestParams{scores, blocks.count, blocks.size}, {blocks.count, rows}, {.bytes = bytes});
  recorder.dispatch(kernel(device, "best_scores", prelude, {"score_order"}), {gpu::read(op.scores), gpu::read(op.room.largest), gpu::read_write(op.room.found)},
                    BestParams{scores, blocks.count, blocks.size, best_scores_found(scores)}, {blocks.count, rows}, {.bytes = bytes / 2});
}

bool is_finite(std::span<const std::uint32_t> list) { return list[2] != 0; }

std::optional<BestOfRow> best_of(std::span<const std::uint32_t> list) {
  const std::uint32_t count = list[0];
  if (!is_finite(list) || count > best_list_room) return {};
  BestOfRow best{.tokens = {}, .bound = std::bit_cast<float>(list[1])};
  for (std::uint32_t i = 0; i < count; ++i) best.tokens.push_back({list[best_list_header + 2 * i], std::bit_cast<float>(list[best_list_header + 2 * i + 1])});
  std::sort(best.tokens.begin(), best.tokens.end(), [](const ScoredToken& a, const ScoredToken& b) { return a.id < b.id; });
  return best;
}

}  // namespace nibble
