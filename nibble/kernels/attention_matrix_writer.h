#pragma once

#include "nibble/kernels/attention_matrix.h"

#include <functional>
#include <iterator>

namespace nibble::detail {

// What the texts of attention on matrix units share: sizes, products of scores and of results, and writing results.
class AttentionWriter {
 protected:
  AttentionWriter(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim);

  template <typename... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    text_ += '\n';
  }

  static constexpr std::uint32_t edge = 16;          // of an operand's tile
  static constexpr std::uint32_t tile_vectors = 32;  // of 16 bytes in it

  // Each subgroup's share.
  std::uint32_t score_rows() const { return t_.rows / (t_.subgroups / t_.scores_across); }
  std::uint32_t score_columns() const { return t_.columns / t_.scores_across; }
  std::uint32_t result_rows() const { return t_.rows / (t_.subgroups / t_.results_across); }
  std::uint32_t result_columns() const { return dim_ / t_.results_across; }

  // Workgroup memory in vectors of 16 bytes; rows are longer than they need be, so that they spread over its banks.
  bool two() const { return pass_ != AttentionPass::forward; }  // tiles of scores
  std::uint32_t weight_tiles() const { return pass_ == AttentionPass::key_gradients ? 2 : 1; }
  std::uint32_t score_stride() const { return t_.columns / 4 + 2; }
  std::uint32_t weight_stride() const { return t_.columns / 8 + 1; }
  std::uint32_t scores_size() const { return t_.rows * score_stride(); }
  // The forward pass rescales results while there are weights.
  std::uint32_t weights_at() const { return two() ? 2 * scores_size() : std::max(scores_size(), strips_size()); }
  std::uint32_t strip_stride() const { return result_columns() / 4 + 2; }
  std::uint32_t strip_size() const { return t_.matrix.m * strip_stride(); }
  std::uint32_t strips_size() const { return strip_size() * t_.subgroups; }
  std::uint32_t room_size() const {
    return std::max(weights_at() + weight_tiles() * t_.rows * weight_stride(), strips_size());
  }

  // Where in a block of packed rows one begins, and a column of turned ones.
  std::uint32_t plain_row(std::uint32_t row) const { return row / edge * (dim_ / edge) * tile_vectors + row % edge * 2; }
  static std::uint32_t turned_column(std::uint32_t column) { return column / edge * tile_vectors + column % edge * 2; }

  template <typename F>
  void for_results(F f) const {
    for (std::uint32_t i = 0; i < result_rows() / t_.matrix.m; ++i)
      for (std::uint32_t j = 0; j < result_columns() / t_.matrix.n; ++j) f(i, j);
  }

  // Everything before the entry point but the pass's own bindings.
  void declarations();
  // The entry point as far as where the workgroup's rows begin, and each subgroup's share.
  void begin(const char* first);
  // room[tile] = left right^T, both plain rows.
  void scores(const char* left, const char* right, std::uint32_t tile);
  void declare_results(char results);
  // results += weights[tile] right, whose rows are turned.
  void accumulate(char results, std::uint32_t tile, const char* right);
  // Matrices of one row of the subgroup's results, to its own strip of the room.
  void store_strip(char results, std::uint32_t i);
  // output[row_at + column] = results * factor, for rows up to `last`; both are expressions of `row`.
  void write_results(char results, const char* output, const std::string& row_at, const char* factor);
  // Eight numbers of the invocation's columns.
  void columns_numbers(const char* name, const char* at);

  AttentionTile t_;
  AttentionPass pass_;
  std::uint32_t dim_;
  std::string text_;

 private:
  using StepBody = std::function<void(const std::string& step, const std::string& further)>;
  void steps(std::uint32_t length, std::uint32_t tile_step, const StepBody& body);
};

}  // namespace nibble::detail
