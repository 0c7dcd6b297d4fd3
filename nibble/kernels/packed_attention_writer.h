#pragma once

#include "nibble/kernels/packed_attention.h"

#include <functional>
#include <iterator>

namespace nibble::detail {

// What the texts of attention on matrix units share. A workgroup keeps its own rows of one or two operands and loops over
// blocks of rows of one or two others, which it brings into workgroup memory (`stages`) through registers, so that the
// next block is on its way while this one is multiplied.
class PackedAttentionWriter {
 protected:
  PackedAttentionWriter(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim);

  template <typename... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    text_ += '\n';
  }

  // Each subgroup's share.
  std::uint32_t score_rows() const { return t_.rows / (t_.subgroups / t_.scores_across); }
  std::uint32_t score_columns() const { return t_.columns / t_.scores_across; }
  std::uint32_t result_rows() const { return t_.rows / (t_.subgroups / t_.results_across); }
  std::uint32_t result_columns() const { return dim_ / t_.results_across; }

  // An invocation turns scores of one row into weights: of units of columns that lie parts() units apart. Gradients with
  // units of 16 put the weights where their scores were, each unit into the first half of its place.
  std::uint32_t parts() const { return t_.invocations() / t_.rows; }
  std::uint32_t unit() const { return t_.columns / parts() % 16 == 0 ? 16 : 8; }
  std::uint32_t units() const { return t_.columns / parts() / unit(); }
  bool in_place() const { return two() && unit() == 16; }

  // Workgroup memory in vectors of 16 bytes; rows are longer than they need be, so that they spread over its banks.
  bool two() const { return pass_ != AttentionPass::forward; }  // tiles of scores
  std::uint32_t weight_tiles() const { return pass_ == AttentionPass::key_gradients ? 2 : 1; }
  std::uint32_t length() const { return dim_ / 8; }  // of an operand's row
  std::uint32_t stride() const { return length() + 1; }
  std::uint32_t stage(std::uint32_t i) const { return i * t_.columns * stride(); }
  std::uint32_t own(std::uint32_t i) const { return stage(2) + i * t_.rows * stride(); }
  std::uint32_t score_stride() const { return t_.columns / 4 + 1; }
  std::uint32_t scores_at(std::uint32_t tile) const {
    const std::uint32_t owns = t_.own_in_registers ? 0 : two() ? 2 : 1;
    return own(owns) + tile * t_.rows * score_stride();
  }
  std::uint32_t weight_stride() const { return in_place() ? score_stride() : t_.columns / 8 + 1; }
  std::uint32_t weights_at(std::uint32_t tile) const {
    return in_place() ? scores_at(tile) : scores_at(two() ? 2 : 1) + tile * t_.rows * weight_stride();
  }
  // lse and delta of the block's queries, in key gradients.
  std::uint32_t numbers_at(std::uint32_t i) const {
    return (in_place() ? scores_at(two() ? 2 : 1) : weights_at(weight_tiles())) + i * t_.columns / 4;
  }
  std::uint32_t strip_stride() const { return result_columns() / 4 + 2; }
  std::uint32_t strip_size() const { return t_.matrix.m * strip_stride(); }
  std::uint32_t room_size() const;

  template <typename F>
  void for_results(F f) const {
    for (std::uint32_t i = 0; i < result_rows() / t_.matrix.m; ++i)
      for (std::uint32_t j = 0; j < result_columns() / t_.matrix.n; ++j) f(i, j);
  }

  // Everything before the entry point but the pass's own bindings.
  void declarations();
  // The entry point as far as where the workgroup's rows begin, and each subgroup's share.
  void begin(const char* first);
  // The workgroup's rows `first` to `last` of own operand i, from vector `rows` of each on: on their way, and then in
  // registers or workgroup memory.
  void fetch_own(std::uint32_t i, const char* operand, const char* rows, const char* row_length);
  void keep_own(std::uint32_t i);
  // Variables for a block of both looped operands and the scales of their rows.
  void declare_stages();
  // Operand i's block of rows from `token` on into them, from vector `rows` of each on.
  struct Source {
    const char *operand, *rows, *row_length, *scales;
  };
  void fetch(std::uint32_t i, const Source& source, const char* token);
  // The largest of some values of tokens, or of heads and tokens: `value` is an expression of `at` < count.
  struct Largest {
    const char *name, *value;
  };
  void find_largest(const char* count, std::initializer_list<Largest> wanted);
  // From there into workgroup memory, each row times its scale and the text's inverse0 or inverse1. Rows from the text's `end`
  // on, which no one meets, get the scale 0. `token` is that of `fetch`.
  void store_stage(std::uint32_t i, const char* token);
  // scores[tile] = own[tile] stage[tile]^T
  void scores(std::uint32_t tile);
  void declare_results(char results);
  // results += weights[tile] stage[from]
  void accumulate(char results, std::uint32_t tile, std::uint32_t from);
  // Matrices of one row of the subgroup's results, to its own strip of the room.
  void store_strip(char results, std::uint32_t i);
  // output[row_at + column] = results * factor, for rows up to `last`; both are expressions of `row`.
  void write_results(char results, const char* output, const std::string& row_at, const char* factor);
  // Vectors of 4 scores that an invocation has, the column of the n-th and the vector of the room where it lies.
  std::uint32_t vectors() const { return t_.columns / parts() / 4; }
  std::string column(std::uint32_t n) const;
  std::string score(std::uint32_t tile, std::uint32_t n) const;
  // weights[tile] of the invocation from its variables `name`0 and so on.
  void store_weights(const char* name, std::uint32_t tile);

  AttentionTile t_;
  AttentionPass pass_;
  std::uint32_t dim_;
  std::string text_;

 private:
  // A step of the inner dimension: a number, or the text's variable.
  struct Step {
    bool known;
    std::uint32_t value;
    std::string times(std::uint32_t factor) const {
      return known ? fmt::format("{}u", value * factor) : fmt::format("step * {}u", factor);
    }
  };
  void steps(std::uint32_t length, const std::function<void(const Step&)>& body);
  std::string weight_column(const Step& step) const;
  std::uint32_t fetches() const { return t_.columns * length() / t_.invocations(); }
  std::uint32_t rows_at_once() const { return t_.invocations() / length(); }
};

}  // namespace nibble::detail
