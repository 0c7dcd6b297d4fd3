#pragma once

#include "nibble/kernels/lora_matrix_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <iterator>

namespace nibble::detail {

// Writes the text, as product_matrix_text.cpp does: both operands go through registers and workgroup memory, the loads
// of the next step inside a uniform branch before the products of this one, and nothing computes with them there, which
// would wait for them; every accumulator is a variable of its own.
// Results go to `sums` as they are, whose rows are padded to whole blocks.
class LoraWriter {
 public:
  LoraWriter(const LoraTile& tile, const LoraText& text, std::string_view random)
      : t_(tile), o_(text), random_(random) {}

  std::string text();
  // Workgroup memory in bytes.
  std::uint32_t memory() const { return 16 * tiles() + 4 * shares() + (columns() ? 4 * t_.subgroups : 0); }

 private:
  static constexpr std::uint32_t lane = 8;  // elements of one vec4<u32>

  // A tile of workgroup memory: rows of vectors, mostly one vector longer than they need be, so that they spread over
  // its banks.
  struct Stage {
    std::uint32_t rows, columns, base;
    std::uint32_t padding = 1;
    std::uint32_t stride() const { return columns + padding; }
    std::uint32_t size() const { return rows * stride(); }
  };

  template <typename... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    text_ += '\n';
  }

  bool columns() const { return o_.pass == LoraPass::gradients || both(); }
  bool both() const { return o_.pass == LoraPass::backward; }
  std::uint32_t share() const { return t_.block / t_.subgroups; }  // of a subgroup
  // Matrices of a subgroup's results: rows are those of x, or the narrow operand's columns.
  std::uint32_t down() const { return (columns() ? o_.narrow : share()) / t_.matrix.m; }
  std::uint32_t across() const { return (columns() ? share() : o_.narrow) / t_.matrix.n; }

  Stage wide() const { return columns() ? Stage{t_.step, t_.block / lane, 0} : Stage{t_.block, t_.step / lane, 0}; }
  Stage narrow() const {
    if (o_.pass == LoraPass::down) return {o_.narrow, t_.step / lane, wide().size()};
    return {t_.step, o_.narrow / lane, wide().size()};
  }

  // What `up` multiplies by, for the block's columns: it passes through here into registers.
  Stage kept_narrow() const { return {t_.block, o_.narrow / lane, 0, 0}; }
  // Vectors of both stages.
  std::uint32_t tiles() const {
    return std::max(wide().size() + narrow().size(), both() ? kept_narrow().size() : 0);
  }
  // Elements of the sums of `up` over the subgroups' shares of the columns; their rows are longer than they need be too.
  std::uint32_t share_stride() const { return o_.narrow + 4; }
  std::uint32_t shares() const { return both() ? t_.subgroups * t_.step * share_stride() : 0; }

  template <typename F>
  void for_matrices(F f) const {
    for (std::uint32_t i = 0; i < down(); ++i)
      for (std::uint32_t j = 0; j < across(); ++j) f(i, j);
  }

  // The vectors of a stage that an invocation moves: `f` with their number, row and column. In the last turn some may
  // have the last vector as well, which `if_own` lets one of them store.
  using VectorBody = std::function<void(std::uint32_t, const std::string& row, const std::string& column)>;
  void for_vectors(const Stage& stage, const VectorBody& f) const;
  std::string if_own(const Stage& stage, std::uint32_t i) const;

  void declarations();
  void find_segment(const char* of);
  void place_rows();
  void place_columns();
  void largest_power();
  std::string fetch(const std::string& step) const;
  void store();
  void steps();
  void keep_narrow();
  void multiply();
  void multiply_rows();
  void add_shares();
  void finish();

  LoraTile t_;
  LoraText o_;
  std::string_view random_;
  std::string text_;
};

}  // namespace nibble::detail
