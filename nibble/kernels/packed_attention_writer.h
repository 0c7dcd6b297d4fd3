#pragma once

#include "nibble/kernels/packed_attention.h"

#include <algorithm>
#include <functional>
#include <iterator>

namespace nibble::detail {

// What the texts of attention on matrix units share. A workgroup keeps its own rows of one or two operands and loops over
// blocks of rows of one or two others, which it brings into workgroup memory (`stages`) through registers, so that the
// next block is on its way while this one is multiplied. Of two products of one size each half of the subgroups does one:
// a subgroup then has larger shares and keeps rows of one operand alone.
class PackedAttentionWriter {
 protected:
  PackedAttentionWriter(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim);

  template <typename... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    text_ += '\n';
  }

  bool from_caches() const { return pass_ == AttentionPass::forward_from_caches; }
  bool two() const { return pass_ != AttentionPass::forward && !from_caches(); }  // tiles of scores
  bool two_results() const { return pass_ == AttentionPass::key_gradients; }
  std::uint32_t operands() const { return two() ? 2 : 1; }  // of the workgroup's own rows
  std::uint32_t score_subgroups() const { return two() ? t_.subgroups / 2 : t_.subgroups; }
  std::uint32_t result_subgroups() const { return two_results() ? t_.subgroups / 2 : t_.subgroups; }
  // Each subgroup's share.
  std::uint32_t score_rows() const { return t_.rows / (score_subgroups() / t_.scores_across); }
  std::uint32_t score_columns() const { return t_.columns / t_.scores_across; }
  std::uint32_t result_rows() const { return t_.rows / (result_subgroups() / t_.results_across); }
  std::uint32_t result_columns() const { return dim_ / t_.results_across; }

  // An invocation turns 8 scores of one row into weights. Lanes side by side have rows side by side, whose scores lie in
  // different banks. Gradients put the weights where the scores were, into the half next to the neighbour's.
  std::uint32_t parts() const { return t_.invocations() / t_.rows; }
  std::uint32_t lane_rows() const { return t_.subgroup / parts(); }
  bool in_place() const { return two(); }

  // Workgroup memory in vectors of 16 bytes; rows are longer than they need be, so that they spread over its banks.
  std::uint32_t length() const { return dim_ / 8; }  // of an operand's row
  std::uint32_t stride() const { return length() + 1; }
  std::uint32_t stage(std::uint32_t i) const { return i * t_.columns * stride(); }
  // From what a block keeps until its results are added, which is all in key gradients and the keys in those of queries, to
  // that of the next block. The former have lse and delta of the block's queries behind its stages.
  std::uint32_t block() const { return two_results() ? numbers_at(2) : stage(2); }
  std::uint32_t numbers_at(std::uint32_t i) const { return stage(2) + i * t_.columns / 4; }
  std::uint32_t stages_end() const { return two_results() ? 2 * block() : two() ? stage(3) : stage(2); }
  std::uint32_t own(std::uint32_t i) const { return stages_end() + i * t_.rows * stride(); }
  // On their way into registers half of each row of two operands fits.
  std::uint32_t own_length() const { return length() / operands(); }
  std::uint32_t score_stride() const { return t_.columns / 4 + 1; }
  std::uint32_t scores_at(std::uint32_t tile) const {
    return own(t_.own_in_registers ? 0 : operands()) + tile * t_.rows * score_stride();
  }
  std::uint32_t weight_stride() const { return in_place() ? score_stride() : t_.columns / 8 + 1; }
  std::uint32_t weights_at(std::uint32_t tile) const { return scores_at(in_place() ? tile : 1); }
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
  // The workgroup's rows `first` to `last` of own operand i, from vector `rows` of each on: on their way, and then all
  // in registers or workgroup memory.
  void fetch_own(std::uint32_t i, const char* operand, const char* rows, const char* row_length);
  void keep_own();
  // Variables for a block of both looped operands and the scales of their rows.
  void declare_stages();
  // Operand i's block of rows from `token` on into them, from vector `rows` of each on. Without scales they are 1.
  struct Source {
    std::string_view operand, rows, row_length, scales, count = "params.tokens";
  };
  void fetch(std::uint32_t i, const Source& source, const char* token);
  // The largest of some values of tokens, or of heads and tokens: `value` is an expression of `at` < count.
  struct Largest {
    const char *name, *value;
  };
  void find_largest(const char* count, std::initializer_list<Largest> wanted);
  // From there into workgroup memory, `to` vectors behind stage i, each row times its scale and the text's inverse0 or
  // inverse1. Rows from the text's `end` on, which no one meets, get the scale 0. `token` is that of `fetch`.
  void store_stage(std::uint32_t i, const char* token, const char* to = "0u");
  // The subgroup's share of scores[i] = own[i] stage[i]^T, where its stage begins at `stage`; and on into workgroup memory.
  void scores(const std::string& stage);
  void store_scores();
  void declare_results();
  // results += weights stage, of the subgroup's half of the weights and the stage at `stage`.
  void accumulate(const std::string& stage);
  // Matrices of one row of the subgroup's results, to its own strip of the room.
  void store_strip(std::uint32_t i);
  // output[row_at + column] = results * factor, for rows up to `last`; both are expressions of `row`.
  void write_results(const char* output, const std::string& row_at, const char* factor);
  // Vectors of 4 scores that an invocation has, the column of the n-th and the vector of the room where it lies.
  static constexpr std::uint32_t vectors = 2;
  std::string column(std::uint32_t n) const { return fmt::format("(part * 8u + {}u)", n * 4); }
  std::string score(std::uint32_t tile, std::uint32_t n) const;
  // The text's p0 and p1 become `otherwise` where the column's token, `token` and on, is not in [`begin`, own_end).
  void keep_met(const char* token, const char* begin, const char* otherwise);
  // weights[tile] of the invocation from its variables `name`0 and `name`1.
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
  void own_to_registers();
  void own_piece_to_room(std::uint32_t piece);
  std::string weight_column(const Step& step) const;
  // Lanes side by side bring neighbouring vectors of a row, 128 bytes at least, so that few fetch a row's scale.
  std::uint32_t lanes_a_row() const { return std::clamp(t_.invocations() / t_.columns, std::min(8u, length()), length()); }
  std::uint32_t rows_at_once() const { return t_.invocations() / lanes_a_row(); }
  // f(n, v, row, column) for what an invocation brings of `rows` rows: their n-th, its v-th vector; row and column are those
  // of the first invocation.
  template <typename F>
  void for_vectors(std::uint32_t rows, F f) const {
    for (std::uint32_t n = 0; n < rows / rows_at_once(); ++n)
      for (std::uint32_t v = 0; v < length() / lanes_a_row(); ++v) f(n, v, n * rows_at_once(), v * lanes_a_row());
  }
};

// What loops over keys has in common.
class KeysWriter : protected PackedAttentionWriter {
 protected:
  using PackedAttentionWriter::PackedAttentionWriter;
  // The keys that the workgroup's queries meet, and those that all of them meet.
  void block_of_keys() {
    line("  let key_head = group.x / group_size;\n  let begin = key_begin[first];\n  let end = key_end[last];");
    line("  let whole_begin = key_begin[last];\n  let whole_end = key_end[first];");
    if (from_caches()) return line("  let k_at = key_head * params.capacity * HEAD;\n  let v_at = k_at;");
    line("  let k_at = q_length + key_head * HEAD;\n  let v_at = qk_length + key_head * HEAD;");
  }
  void fetch_k(const char* token) { fetch_of(0, {"qk", "k_at", "qk_length", "qk_scale"}, "k_cache", token); }
  void fetch_v(const char* token) { fetch_of(1, {"qkv", "v_at", "qkv_length", "v_scale"}, "v_cache", token); }
  // The scales that keys and values are brought to; caches have none.
  void largest_of_keys() {
    if (from_caches()) return line("  let most_k = 1.0;\n  let unit_v = 1.0;\n  let inverse0 = 1.0;\n  let inverse1 = 1.0;");
    line("  var most_k = TINY;\n  var most_v = TINY;\n  let met = end - begin;");
    find_largest("met", {{"k", "qk_scale[begin + at]"}, {"v", "v_most[begin + at]"}});
    line("  let unit_v = unit_of(most_v);\n  let inverse0 = inverse_power(most_k);\n  let inverse1 = inverse_power(unit_v);");
  }

 private:
  void fetch_of(std::uint32_t i, const Source& stream, const char* cache, const char* token) {
    from_caches() ? fetch(i, {cache, i == 0 ? "k_at" : "v_at", "HEAD", "", "params.capacity"}, token) : fetch(i, stream, token);
  }
};

// Of the forward pass, whose keys and values come from the stream or from caches.
std::string packed_forward_text(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim);

}  // namespace nibble::detail
