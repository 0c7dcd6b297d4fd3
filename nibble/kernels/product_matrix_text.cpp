#include "nibble/kernels/product_matrix.h"

#include "nibble/base/error.h"

#include <algorithm>

// The text that is written, for a workgroup (block) of subgroups (parts):
//   registers <- first step of x and w
//   for each step of the inner dimension:
//     tile_x, tile_w in workgroup memory <- registers; barrier
//     registers <- next step, inside a uniform branch (faster on NVIDIA than reading beyond the end)
//     every subgroup multiplies its matrices out of workgroup memory; barrier
//   LoRA's tail, if any, goes the same way, without registers loaded ahead.
//   the sums go through workgroup memory, where rows get their scale, to y.
// Operands are read as vectors of 16 bytes (8 elements), rows in workgroup memory are 16 bytes longer than they need to be,
// so that matrix loads spread over its banks. Loads beyond an edge are brought back to the last row; where the inner
// dimension does not divide into steps, x is zero beyond its end and w is any finite value. Steps have the length of a uniform
// that is 1: a trip count that compilers know makes NVIDIA's peel the loop and spill.

namespace nibble::detail {
namespace {

constexpr std::uint32_t lane = 8;  // elements of one vec4<u32>

class Writer {
 public:
  Writer(const MatrixTile& tile, const MatrixText& text)
      : t_(tile), nt_(text.layout == MatrixLayout::nt), whole_steps_(text.whole_steps), tail_step_(text.tail_step), output_(text.output) {
    for (const Stage& stage : {stage_x(), stage_w()}) {
      check(vectors(stage) * t_.invocations() == stage.rows * stage.columns && t_.invocations() % stage.columns == 0,
            "product_matrix", "{} invocations do not divide {} rows of {} vectors.", t_.invocations(), stage.rows, stage.columns);
    }
  }

  std::string text() {
    declarations();
    line("@compute @workgroup_size({})", t_.invocations());
    line("fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,");
    line("        @builtin(local_invocation_index) index: u32, @builtin(subgroup_id) subgroup: u32,");
    line("        @builtin(subgroup_invocation_id) lane: u32) {{");
    place();
    for_matrices([&](auto i, auto j) { line("  var c{}_{}: Result;", i, j); });
    line("  {}", fetch());
    line("  for (var step = 0u; step < steps; step += params.one) {{");
    store();
    line("    workgroupBarrier();");
    line("    if (step + 1u < steps) {{\n      {}\n    }}", fetch());
    multiply(t_.block_k);
    line("    workgroupBarrier();");
    line("  }}");
    if (tail_step_) tail();
    finish();
    line("}}");
    return text_;
  }

 private:
  template <typename... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    text_ += '\n';
  }

  std::uint32_t matrices_m() const { return t_.part_m / t_.matrix.m; }
  std::uint32_t matrices_n() const { return t_.part_n / t_.matrix.n; }

  template <typename F>
  void for_matrices(F f) {
    for (std::uint32_t i = 0; i < matrices_m(); ++i)
      for (std::uint32_t j = 0; j < matrices_n(); ++j) f(i, j);
  }

  // A tile of workgroup memory and how its 16-byte vectors are spread over the invocations.
  struct Stage {
    std::uint32_t rows, columns;   // columns in vectors
    std::uint32_t stride() const { return columns + 1; }
    std::uint32_t size() const { return rows * stride(); }
  };
  Stage stage_x() const { return {t_.block_m, t_.block_k / lane}; }
  Stage stage_w() const { return nt_ ? Stage{t_.block_n, t_.block_k / lane} : Stage{t_.block_k, t_.block_n / lane}; }
  std::uint32_t vectors(const Stage& stage) const { return stage.rows * stage.columns / t_.invocations(); }
  std::uint32_t rows_at_once(const Stage& stage) const { return t_.invocations() / stage.columns; }

  // The row of a tile that an invocation begins with. Eight lanes that store at once would hit the same banks in two adjacent
  // rows of 4 vectors (four rows of 2): they take rows four (two) further down.
  std::string first_row(const Stage& stage) const {
    if (stage.columns == 4 && t_.invocations() % 32 == 0) return "index / 32u * 8u + index / 8u % 4u + index / 4u % 2u * 4u";
    if (stage.columns == 2 && t_.invocations() % 16 == 0) return "index / 16u * 8u + index / 8u % 2u + index / 2u % 4u * 2u";
    return fmt::format("index / {}u", stage.columns);
  }

  // The results of `strips` rows of matrices of every subgroup fit into the tiles' memory.
  std::uint32_t result_stride() const { return t_.part_n / 4 + 1; }
  std::uint32_t strip_size() const { return t_.matrix.m * result_stride(); }
  std::uint32_t strips() const {
    std::uint32_t strips = matrices_m();
    while (strips > 1 && (matrices_m() % strips != 0 || strips * strip_size() * t_.subgroups() > tiles_size())) --strips;
    return strips;
  }
  std::uint32_t tiles_size() const { return stage_x().size() + stage_w().size(); }

  // The element of y, of `sums`.
  std::string_view result() const {
    switch (output_) {
      case MatrixOutput::write: return "params.scale * x_scale[row] * sums";
      case MatrixOutput::accumulate: return "y[at] + params.scale * x_scale[row] * sums";
      case MatrixOutput::plus: return "base[at] + params.scale * x_scale[row] * sums";
      case MatrixOutput::f16: return "vec4<f16>(sums * 0.015625)";
    }
    return {};
  }

  void declarations();
  void place();
  std::string fetch() const;
  void store();
  void multiply(std::uint32_t inner);
  void tail();
  void finish();

  MatrixTile t_;
  bool nt_, whole_steps_;
  std::uint32_t tail_step_;
  MatrixOutput output_;
  std::string text_;
};

void Writer::declarations() {
  line("enable f16;\nenable subgroups;\nenable chromium_experimental_subgroup_matrix;");
  line("struct Params {{ rows: u32, columns: u32, inner: u32, x_stride: u32, x_first: u32, y_stride: u32, y_first: u32, one: u32,");
  line("  tail_inner: u32, left_stride: u32, first_end: u32, second_end: u32, scale: f32 }}");
  line("@group(0) @binding(0) var<uniform> params: Params;");
  line("@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;");
  line("@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;");
  line("@group(0) @binding(3) var<storage, read_write> y: array<vec4<{}>>;", output_ == MatrixOutput::f16 ? "f16" : "f32");
  line("@group(0) @binding(4) var<storage, read> x_scale: array<f32>;");
  std::uint32_t next = 5;
  if (output_ == MatrixOutput::plus) line("@group(0) @binding({}) var<storage, read> base: array<vec4<f32>>;", next++);
  if (output_ == MatrixOutput::f16) line("@group(0) @binding({}) var<storage, read_write> y_scale: array<f32>;", next++);
  if (tail_step_) {
    line("@group(0) @binding({}) var<storage, read> left: array<vec4<u32>>;", next);
    line("@group(0) @binding({}) var<storage, read> right: array<vec4<u32>>;", next + 1);
  }
  const std::uint32_t results = strips() * strip_size() * t_.subgroups();
  line("var<workgroup> tiles: array<vec4<u32>, {}>;", std::max(tiles_size(), results));
  line("alias Left = subgroup_matrix_left<f16, {}, {}>;", t_.matrix.k, t_.matrix.m);
  line("alias Right = subgroup_matrix_right<f16, {}, {}>;", t_.matrix.n, t_.matrix.k);
  line("alias Result = subgroup_matrix_result<f32, {}, {}>;", t_.matrix.n, t_.matrix.m);
}

// Where block, part and invocation lie. Blocks go down bands of block rows, so that those at work together share much of
// x and w in the cache.
void Writer::place() {
  const Stage sx = stage_x(), sw = stage_w();
  line("  let blocks_m = (params.rows + {}u) / {}u;", t_.block_m - 1, t_.block_m);
  line("  let blocks_n = (params.columns + {}u) / {}u;", t_.block_n - 1, t_.block_n);
  line("  let id = group.y * groups.x + group.x;");
  line("  if (id >= blocks_m * blocks_n) {{\n    return;\n  }}");
  line("  let band = id / ({}u * blocks_n);", t_.band);
  line("  let in_band = id % ({}u * blocks_n);", t_.band);
  line("  let band_rows = min({0}u, blocks_m - band * {0}u);", t_.band);
  line("  let block_row = (band * {}u + in_band % band_rows) * {}u;", t_.band, t_.block_m);
  line("  let block_column = in_band / band_rows * {}u;", t_.block_n);
  line("  let part_row = subgroup % {0}u * {1}u;", t_.block_m / t_.part_m, t_.part_m);
  line("  let part_column = subgroup / {0}u * {1}u;", t_.block_m / t_.part_m, t_.part_n);
  line("  let steps = (params.inner + {}u) / {}u;", t_.block_k - 1, t_.block_k);

  line("  let x_length = params.x_stride / 8u;");
  line("  let x_row = {};\n  let x_column = index % {}u;", first_row(sx), sx.columns);
  line("  var x_at = (block_row + x_row) * x_length + params.x_first / 8u + x_column;");
  line("  var x_last = (params.rows - 1u) * x_length + params.x_first / 8u + x_column;");
  line("  let x_down = {}u * x_length;", rows_at_once(sx));
  line("  let x_put = x_row * {}u + x_column;", sx.stride());
  if (!whole_steps_) {
    line("  let x_end = params.rows * x_length - 1u;");
    line("  var x_left = i32(params.inner / 8u) - i32(x_column);");
  }

  line("  let w_row = {};\n  let w_column = index % {}u;", first_row(sw), sw.columns);
  if (nt_) {
    line("  let w_length = params.inner / 8u;");
    line("  var w_at = (block_column + w_row) * w_length + w_column;");
    line("  let w_last = params.columns * w_length - 1u;");
  } else {
    line("  let w_length = params.columns / 8u;");
    line("  let w_from = min(block_column / 8u + w_column, w_length - 1u);");
    line("  var w_at = w_row * w_length + w_from;");
    line("  let w_last = (params.inner - 1u) * w_length + w_from;");
  }
  line("  let w_down = {}u * w_length;", rows_at_once(sw));
  line("  let w_put = {}u + w_row * {}u + w_column;", sx.size(), sw.stride());
  for (std::uint32_t i = 0; i < vectors(sx); ++i) line("  var x{}: vec4<u32>;", i);
  for (std::uint32_t i = 0; i < vectors(sw); ++i) line("  var w{}: vec4<u32>;", i);
}

std::string Writer::fetch() const {
  std::string text;
  auto out = std::back_inserter(text);
  for (std::uint32_t i = 0; i < vectors(stage_x()); ++i) {
    if (whole_steps_) {
      fmt::format_to(out, "x{0} = x[min(x_at + {0}u * x_down, x_last)]; ", i);
    } else {
      fmt::format_to(out, "x{0} = select(vec4<u32>(), x[min(min(x_at + {0}u * x_down, x_last), x_end)], x_left > 0); ", i);
    }
  }
  for (std::uint32_t i = 0; i < vectors(stage_w()); ++i) {
    fmt::format_to(out, "w{0} = w[min(w_at + {0}u * w_down, w_last)]; ", i);
  }
  fmt::format_to(out, "x_at += {0}u; x_last += {0}u; ", stage_x().columns);
  if (!whole_steps_) fmt::format_to(out, "x_left -= {}; ", stage_x().columns);
  if (nt_) {
    fmt::format_to(out, "w_at += {}u;", stage_w().columns);
  } else {
    fmt::format_to(out, "w_at += {}u * w_length;", t_.block_k);
  }
  return text;
}

void Writer::store() {
  for (std::uint32_t i = 0; i < vectors(stage_x()); ++i) {
    line("    tiles[x_put + {}u] = x{};", i * rows_at_once(stage_x()) * stage_x().stride(), i);
  }
  for (std::uint32_t i = 0; i < vectors(stage_w()); ++i) {
    line("    tiles[w_put + {}u] = w{};", i * rows_at_once(stage_w()) * stage_w().stride(), i);
  }
}

void Writer::multiply(std::uint32_t inner) {
  const Stage sx = stage_x(), sw = stage_w();
  line("    let x_from = part_row * {}u;", sx.stride());
  line("    let w_from_part = {}u + part_column {} {}u;", sx.size(), nt_ ? "*" : "/", nt_ ? sw.stride() : lane);
  for (std::uint32_t k = 0; k < inner; k += t_.matrix.k) {
    line("    {{");
    for (std::uint32_t i = 0; i < matrices_m(); ++i) {
      line("      let a{} = subgroupMatrixLoad<Left, row_major>(&tiles, x_from + {}u, {}u);", i,
           i * t_.matrix.m * sx.stride() + k / lane, sx.stride());
    }
    for (std::uint32_t j = 0; j < matrices_n(); ++j) {
      const std::uint32_t offset = nt_ ? j * t_.matrix.n * sw.stride() + k / lane : k * sw.stride() + j * t_.matrix.n / lane;
      line("      let b{} = subgroupMatrixLoad<Right, {}>(&tiles, w_from_part + {}u, {}u);", j,
           nt_ ? "col_major" : "row_major", offset, sw.stride());
      for (std::uint32_t i = 0; i < matrices_m(); ++i) {
        line("      c{0}_{1} = subgroupMatrixMultiplyAccumulate(a{0}, b{1}, c{0}_{1});", i, j);
      }
    }
    line("    }}");
  }
}

// Columns of a tile beyond the tail's end are zero in x's, any finite value in w's.
void Writer::tail() {
  const Stage sx = stage_x(), sw = stage_w();
  line("  let left_length = params.left_stride / 8u;\n  let tail_length = params.tail_inner / 8u;");
  if (nt_) {
    line("  let column = params.y_first + block_column;");
    line("  let left_from = (u32(column >= params.first_end) + u32(column >= params.second_end)) * tail_length;");
    line("  let right_last = params.columns * tail_length - 1u;");
  }
  line("  for (var first = 0u; first < tail_length; first += {}u * params.one) {{", tail_step_ / lane);
  line("    let at = first + x_column;\n    let left_at = min(at, tail_length - 1u){};", nt_ ? " + left_from" : "");
  for (std::uint32_t i = 0; i < vectors(sx); ++i) {
    const std::uint32_t row = i * rows_at_once(sx);
    line("    tiles[x_put + {}u] = select(vec4<u32>(), left[min(block_row + x_row + {}u, params.rows - 1u) * left_length + left_at], "
         "at < tail_length);", row * sx.stride(), row);
  }
  for (std::uint32_t i = 0; i < vectors(sw); ++i) {
    const std::uint32_t row = i * rows_at_once(sw);
    const auto index = nt_ ? fmt::format("min((block_column + w_row + {}u) * tail_length + first + w_column, right_last)", row)
                           : fmt::format("min(first * 8u + w_row + {}u, params.tail_inner - 1u) * w_length + w_from", row);
    line("    tiles[w_put + {}u] = right[{}];", row * sw.stride(), index);
  }
  line("    workgroupBarrier();");
  multiply(tail_step_);
  line("    workgroupBarrier();\n  }}");
}

// An f16 output has 2^-6 of the sums, which its row's scale makes up for: exact powers of two.
void Writer::finish() {
  const std::uint32_t vectors_n = t_.part_n / 4, rows = strips() * t_.matrix.m;
  line("  let own = subgroup * {}u;", strips() * strip_size());
  line("  let y_length = params.y_stride / 4u;");
  for (std::uint32_t first = 0; first < matrices_m(); first += strips()) {
    for (std::uint32_t i = 0; i < strips(); ++i) {
      for (std::uint32_t j = 0; j < matrices_n(); ++j) {
        line("  subgroupMatrixStore<row_major>(&tiles, own + {}u, c{}_{}, {}u);", i * strip_size() + j * t_.matrix.n / 4,
             first + i, j, result_stride());
      }
    }
    line("  workgroupBarrier();");
    line("  for (var i = lane; i < {}u; i += {}u) {{", rows * vectors_n, t_.subgroup);
    line("    let row = block_row + part_row + {}u + i / {}u;", first * t_.matrix.m, vectors_n);
    line("    let column = block_column / 4u + part_column / 4u + i % {}u;", vectors_n);
    line("    if (row < params.rows && column < params.columns / 4u) {{");
    line("      let sums = bitcast<vec4<f32>>(tiles[own + i / {0}u * {1}u + i % {0}u]);", vectors_n, result_stride());
    line("      let at = row * y_length + params.y_first / 4u + column;");
    line("      y[at] = {};", result());
    line("    }}\n  }}");
    if (first + strips() < matrices_m()) line("  workgroupBarrier();");
  }
  if (output_ != MatrixOutput::f16) return;
  line("  if (block_column == 0u) {{\n    for (var i = index; i < min({}u, params.rows - block_row); i += {}u) {{", t_.block_m,
       t_.invocations());
  line("      y_scale[block_row + i] = x_scale[block_row + i] * params.scale * 64.0;\n    }}\n  }}");
}

}  // namespace

std::string matrix_text(const MatrixTile& tile, const MatrixText& text) { return Writer(tile, text).text(); }

}  // namespace nibble::detail
