#include "nibble/kernels/expert_rows.h"

#include "tests/kernels/expert_reference.h"

#include <set>

namespace nibble::expert_rows_test {
namespace {

struct Case {
  std::uint32_t tokens, experts, per_token;
};

// One slot; experts without rows; tiles of few rows and of many, whole and begun; more lanes than slots, and fewer.
const Case cases[] = {{1, 1, 1}, {1, 128, 8}, {5, 7, 3}, {100, 4, 2}, {64, 1, 1}, {300, 9, 4}, {700, 33, 8}};

TEST(ExpertRows, LieByExpertAndSlot) {
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.tokens) + " " + std::to_string(c.experts));
    const test::SortedRows sorted(c.tokens, c.experts, c.per_token, c.tokens);
    const ExpertRows& rows = sorted.rows;
    EXPECT_EQ(rows.slots, c.tokens * c.per_token);
    EXPECT_EQ(test::device().read<std::uint32_t>(rows.slot_of_row), sorted.slot_of_row);
    const auto row_of_slot = test::device().read<std::uint32_t>(rows.row_of_slot);
    for (std::uint32_t row = 0; row < rows.slots; ++row) EXPECT_EQ(row_of_slot[sorted.slot_of_row[row]], row);
    const auto begin = test::device().read<std::uint32_t>(rows.begin);
    for (std::uint32_t e = 0; e <= c.experts; ++e) {
      EXPECT_EQ(begin[e], std::lower_bound(sorted.expert_of_row.begin(), sorted.expert_of_row.end(), e) - sorted.expert_of_row.begin()) << e;
    }
  }
}

// Each row in one tile, of its own expert; the table's rest has no rows.
TEST(ExpertRows, TilesCoverThem) {
  std::set<std::uint32_t> sizes;
  for (const Case& c : cases) {
    const test::SortedRows sorted(c.tokens, c.experts, c.per_token, c.tokens);
    const auto tiles = test::device().read<std::uint32_t>(sorted.rows.tiles);
    EXPECT_EQ(tiles.size(), 3 * expert_tiles(c.experts, sorted.rows.slots, sorted.rows.tile_rows));
    std::vector<std::uint32_t> covered(sorted.rows.slots);
    for (std::size_t i = 0; i < tiles.size(); i += 3) {
      ASSERT_LE(tiles[i + 2], sorted.rows.tile_rows);
      for (std::uint32_t row = tiles[i + 1]; row < tiles[i + 1] + tiles[i + 2]; ++row) {
        ++covered.at(row);
        EXPECT_EQ(sorted.expert_of_row[row], tiles[i]);
      }
    }
    EXPECT_EQ(std::count(covered.begin(), covered.end(), 1u), sorted.rows.slots);
    sizes.insert(sorted.rows.tile_rows);
  }
  EXPECT_EQ(sizes, (std::set<std::uint32_t>{16, 64}));
}

// What a larger pass has left in the room is not taken for this one's.
TEST(ExpertRows, RoomsAreUsedAgain) {
  const auto room = make_expert_rows_room(test::device(), 6, 400);
  for (const std::uint32_t tokens : {200u, 3u}) {
    const auto choices = test::random_choices(tokens, 6, 2, tokens);
    gpu::Recorder recorder(test::device());
    const ExpertRows rows = record(recorder, ExpertSort{.expert = test::upload_u32(choices).view({tokens, 2}), .experts = 6, .room = room});
    recorder.submit();
    const auto tiles = test::device().read<std::uint32_t>(rows.tiles);
    std::uint32_t sum = 0;
    for (std::size_t i = 0; i < tiles.size(); i += 3) sum += tiles[i + 2];
    EXPECT_EQ(sum, 2 * tokens);
  }
}

TEST(ExpertSum, AddsATokensRows) {
  for (const Case& c : cases) {
    const test::SortedRows sorted(c.tokens, c.experts, c.per_token, c.tokens);
    for (const std::uint32_t columns : {1u, 5u, 68u}) {
      const auto x = test::random_values(std::size_t{sorted.rows.slots} * columns, columns), plus = test::random_values(std::size_t{c.tokens} * columns, 7);
      for (const bool on_top : {false, true}) {
        const test::GuardedTensor y(DType::f32, {c.tokens, columns});
        test::run(ExpertSum{.x = test::upload(x, {sorted.rows.slots, columns}), .rows = sorted.rows, .y = y.tensor(),
                            .plus = on_top ? test::upload(plus, {c.tokens, columns}) : Tensor{}});
        y.expect_guards_intact();
        std::vector<float> sums(std::size_t{c.tokens} * columns);
        std::vector<std::uint32_t> row_of_slot(sorted.rows.slots);
        for (std::uint32_t row = 0; row < sorted.rows.slots; ++row) row_of_slot[sorted.slot_of_row[row]] = row;
        for (std::size_t slot = 0; slot < row_of_slot.size(); ++slot) {
          for (std::uint32_t i = 0; i < columns; ++i) sums[slot / c.per_token * columns + i] += x[row_of_slot[slot] * std::size_t{columns} + i];
        }
        for (std::size_t i = 0; on_top && i < sums.size(); ++i) sums[i] = plus[i] + sums[i];
        EXPECT_EQ(test::download(y.tensor()), sums) << c.tokens << " " << columns << " " << on_top;
      }
    }
  }
}

}  // namespace
}  // namespace nibble::expert_rows_test
