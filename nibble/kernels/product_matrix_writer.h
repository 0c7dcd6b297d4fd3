#pragma once

#include "nibble/kernels/product_matrix.h"

#include <fmt/format.h>

#include <iterator>
#include <string>
#include <string_view>
#include <utility>

namespace nibble::detail {

// Writes a product for a workgroup (block) of subgroups (parts):
//   registers <- first step of x, and of w where it is staged
//   for each step of the inner dimension:
//     tiles in workgroup memory <- registers; barrier
//     registers <- next step, inside a uniform branch (faster on NVIDIA than reading beyond the end)
//     every subgroup multiplies its matrices; barrier
//   With two sets of registers, for even and for odd steps, loads have two steps' time to come.
//   LoRA's tail, if any, goes the same way, without registers loaded ahead.
//   the sums go through workgroup memory, where rows get their scale, to y.
// Operands are read as vectors of 16 bytes (8 elements), rows in workgroup memory are 16 bytes longer than they need to be,
// so that matrix loads spread over its banks. Loads beyond an edge are brought back to the last row; where the inner
// dimension does not divide into steps, x is zero beyond its end and w is any finite value. Steps have the length of a uniform
// that is 1: a trip count that compilers know makes NVIDIA's peel the loop and spill.
class MatrixWriter {
 public:
  MatrixWriter(const MatrixTile& tile, const MatrixText& text);
  virtual ~MatrixWriter() = default;

  std::string text();

 protected:
  static constexpr std::uint32_t lane = 8;  // elements of one vec4<u32>

  // A tile of workgroup memory and how its 16-byte vectors are spread over the invocations.
  struct Stage {
    std::uint32_t rows, columns;   // columns in vectors
    std::uint32_t stride() const { return columns + 1; }
    std::uint32_t size() const { return rows * stride(); }
  };
  Stage stage_x() const { return {t_.block_m, t_.block_k / lane}; }
  std::uint32_t vectors(const Stage& stage) const { return stage.rows * stage.columns / t_.invocations(); }
  std::uint32_t rows_at_once(const Stage& stage) const { return t_.invocations() / stage.columns; }
  // The row of a tile that an invocation begins with.
  std::string first_row(const Stage& stage) const;
  void check_stage(const Stage& stage) const;

  template <typename... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    text_ += '\n';
  }

  // Matrices of a part's result, (token, output).
  std::uint32_t matrices_m() const { return t_.part_m / token_edge(); }
  std::uint32_t matrices_n() const { return t_.part_n / output_edge(); }
  template <typename F>
  void for_matrices(F f) {
    for (std::uint32_t i = 0; i < matrices_m(); ++i)
      for (std::uint32_t j = 0; j < matrices_n(); ++j) f(i, j);
  }

  // Sides of a result matrix, and how it is stored with a row a token.
  virtual std::uint32_t token_edge() const = 0;
  virtual std::uint32_t output_edge() const = 0;
  virtual std::string_view result_layout() const = 0;
  // Vectors of workgroup memory that a step takes.
  virtual std::uint32_t tiles_size() const = 0;
  // Before the loop, before a step's multiplications, and these over so many of the inner dimension; names of x stand already.
  virtual void place_w() = 0;
  virtual std::string fetch_w() const = 0;
  virtual void store_w() = 0;
  virtual void multiply() = 0;
  // Right operand and products of a step of the tail, whose first vector is `first`; the left one is in x's tile.
  virtual void tail_step() = 0;
  virtual void multiply_tail() = 0;

  // Of registers that hold a step's loads: the letter behind their names, and whether there is a second set.
  std::string_view set() const { return set_; }
  bool two_sets() const { return what_.decodes && t_.two_sets; }
  template <typename F>
  void for_sets(F declare) {
    for (const std::string_view set : {"", "b"}) {
      set_ = set;
      if (set.empty() || two_sets()) declare();
    }
    set_ = "";
  }

  // What others do with experts: the declarations of w and of bindings beyond y and the scales, the block's place, and x's rows.
  virtual std::string_view w_type() const { return "vec4<u32>"; }
  virtual std::string_view more_params() const { return {}; }
  virtual void declare_more(std::uint32_t) {}
  virtual void place_block();
  virtual void place_x();
  virtual std::string fetch_x() const;
  virtual std::string_view row_end() const { return "params.rows"; }
  virtual std::string x_scale(const std::string& row) const { return fmt::format("x_scale[{}]", row); }

  MatrixTile t_;
  MatrixText what_;
  bool nt_;

 private:
  // The results of `strips` rows of matrices of every subgroup fit into the tiles' memory.
  std::uint32_t result_stride() const { return t_.part_n / 4 + 1; }
  std::uint32_t strip_size() const { return token_edge() * result_stride(); }
  std::uint32_t strips() const;
  std::string result(std::uint32_t i) const;

  void declarations();
  void carry();
  void store_x();
  void steps();
  void step(std::uint32_t ahead);
  void tail();
  void finish();
  void put(std::uint32_t first_row);
  // A loop over the strips' vectors, up to so many at a time, and what body(count) writes: of v < count row{v}, column{v}, whether these are
  // in_y{v}, and sums{v} stand.
  template <typename F>
  void each_vector(std::uint32_t first_row, std::uint32_t at_once, F body) {
    const std::uint32_t vectors_n = t_.part_n / 4, all = strips() * token_edge() * vectors_n;
    while (at_once > 1 && all % (at_once * t_.subgroup) != 0) at_once /= 2;
    line("    for (var i = lane; i < {}u; i += {}u) {{", all, at_once * t_.subgroup);
    for (std::uint32_t v = 0; v < at_once; ++v) {
      line("      let i{} = i + {}u;", v, v * t_.subgroup);
      line("      let row{0} = block_row + part_row + {1}u + i{0} / {2}u;", v, first_row, vectors_n);
      line("      let column{0} = block_column / 4u + part_column / 4u + i{0} % {1}u;", v, vectors_n);
      line("      let in_y{0} = row{0} < {1} && column{0} < params.columns / 4u;", v, row_end());
      line("      let sums{0} = bitcast<vec4<f32>>(tiles[own + i{0} / {1}u * {2}u + i{0} % {1}u]);", v, vectors_n, result_stride());
    }
    body(at_once);
    line("    }}");
  }

  std::string text_;
  std::string_view set_;
};

}  // namespace nibble::detail
