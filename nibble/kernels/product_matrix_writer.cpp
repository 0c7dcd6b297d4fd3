#include "nibble/kernels/product_matrix_writer.h"

#include "nibble/base/error.h"
#include "nibble/kernels/carry.h"
#include "nibble/kernels/kernel.h"

#include <algorithm>

namespace nibble::detail {

MatrixWriter::MatrixWriter(const MatrixTile& tile, const MatrixText& text)
    : t_(tile), what_(text), nt_(text.layout == MatrixLayout::nt) {
  check_stage(stage_x());
}

void MatrixWriter::check_stage(const Stage& stage) const {
  check(vectors(stage) * t_.invocations() == stage.rows * stage.columns && t_.invocations() % stage.columns == 0,
        "product_matrix", "{} invocations do not divide {} rows of {} vectors.", t_.invocations(), stage.rows, stage.columns);
}

// Eight lanes that store at once would hit the same banks in two adjacent rows of 4 vectors (four rows of 2): they take rows
// four (two) further down.
std::string MatrixWriter::first_row(const Stage& stage) const {
  if (stage.columns == 4 && t_.invocations() % 32 == 0) return "index / 32u * 8u + index / 8u % 4u + index / 4u % 2u * 4u";
  if (stage.columns == 2 && t_.invocations() % 16 == 0) return "index / 16u * 8u + index / 8u % 2u + index / 2u % 4u * 2u";
  return fmt::format("index / {}u", stage.columns);
}

std::uint32_t MatrixWriter::strips() const {
  std::uint32_t strips = matrices_m();
  while (strips > 1 && (matrices_m() % strips != 0 || strips * strip_size() * t_.subgroups() > tiles_size())) --strips;
  return strips;
}

// The i-th element of y in flight, of its sums.
std::string MatrixWriter::result(std::uint32_t i) const {
  switch (what_.output) {
    case MatrixOutput::write: return fmt::format("scale{0} * sums{0}", i);
    case MatrixOutput::accumulate:
    case MatrixOutput::plus: return fmt::format("base{0} + scale{0} * sums{0}", i);
    case MatrixOutput::f16: return fmt::format("vec4<f16>(sums{} * 0.015625)", i);
  }
  return {};
}

std::string MatrixWriter::text() {
  declarations();
  line("@compute @workgroup_size({})", t_.invocations());
  line("fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,");
  line("        @builtin(local_invocation_index) index: u32, @builtin(subgroup_id) subgroup: u32,");
  line("        @builtin(subgroup_invocation_id) lane: u32) {{");
  place_block();
  place_x();
  place_w();
  for_matrices([&](auto i, auto j) { line("  var c{}_{}: Result;", i, j); });
  steps();
  if (what_.tail_step) tail();
  finish();
  line("}}");
  return text_;
}

void MatrixWriter::declarations() {
  line("enable f16;\nenable subgroups;\nenable chromium_experimental_subgroup_matrix;");
  line("struct Params {{ rows: u32, columns: u32, inner: u32, x_stride: u32, x_first: u32, y_stride: u32, y_first: u32, one: u32,");
  line("  tail_inner: u32, left_stride: u32, first_end: u32, second_end: u32, band: u32, scale: f32,");
  line("  whole: u32, splits: u32, split_steps: u32{}{} }}", what_.carries ? ", carriers: u32, cargo_first: u32, cargo_rounds: u32" : "", more_params());
  line("@group(0) @binding(0) var<uniform> params: Params;");
  line("@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;");
  line("@group(0) @binding(2) var<storage, read> w: array<{}>;", w_type());
  line("@group(0) @binding(3) var<storage, read_write> y: array<vec4<{}>>;", what_.output == MatrixOutput::f16 ? "f16" : "f32");
  line("@group(0) @binding(4) var<storage, read> x_scale: array<f32>;");
  std::uint32_t next = 5;
  if (what_.output == MatrixOutput::plus) line("@group(0) @binding({}) var<storage, read> base: array<vec4<f32>>;", next++);
  if (what_.output == MatrixOutput::f16) line("@group(0) @binding({}) var<storage, read_write> y_scale: array<f32>;", next++);
  if (what_.tail_step) {
    line("@group(0) @binding({}) var<storage, read> left: array<vec4<u32>>;", next);
    line("@group(0) @binding({}) var<storage, read> right: array<vec4<u32>>;", next + 1);
    next += 2;
  }
  if (what_.splits) line("@group(0) @binding({}) var<storage, read_write> partial: array<vec4<f32>>;", next++);
  if (what_.carries) {
    line("@group(0) @binding({}) var<storage, read> cargo: array<vec4<u32>>;", next);
    line("@group(0) @binding({}) var<storage, read_write> unloaded: array<vec4<u32>>;", next + 1);
    next += 2;
  }
  declare_more(next);
  const std::uint32_t results = strips() * strip_size() * t_.subgroups();
  line("var<workgroup> tiles: array<vec4<u32>, {}>;", std::max(tiles_size(), results));
  line("alias Left = subgroup_matrix_left<f16, {}, {}>;", t_.matrix.k, t_.matrix.m);
  line("alias Right = subgroup_matrix_right<f16, {}, {}>;", t_.matrix.n, t_.matrix.k);
  line("alias Result = subgroup_matrix_result<f32, {}, {}>;", t_.matrix.n, t_.matrix.m);
  text_ += embedded_wgsl().at("lib/bands");
}

// Workgroups with the lowest numbers start first. They move whole rounds, in each of which all loads come before the stores.
void MatrixWriter::carry() {
  const std::uint32_t width = t_.invocations();
  line("  let position = group.y * groups.x + group.x;");
  line("  if (position < params.carriers) {{");
  line("    var at = params.cargo_first + position * {}u + index;", width * carried_vectors);
  line("    for (var round = 0u; round < params.cargo_rounds; round += params.one) {{");
  for (std::uint32_t i = 0; i < carried_vectors; ++i) line("      let carried{} = cargo[at + {}u];", i, i * width);
  for (std::uint32_t i = 0; i < carried_vectors; ++i) line("      unloaded[at + {1}u] = carried{0};", i, i * width);
  line("      at += params.carriers * {}u;", width * carried_vectors);
  line("    }}\n    return;\n  }}");
  line("  let number = position - params.carriers;");
}

// Where block and part lie. Behind the whole blocks come the first splits of all others, then their second ones, and so on.
void MatrixWriter::place_block() {
  line("  let blocks = (vec2<u32>(params.rows, params.columns) + vec2<u32>({}, {})) / vec2<u32>({}, {});", t_.block_m - 1,
       t_.block_n - 1, t_.block_m, t_.block_n);
  if (what_.carries) {
    carry();
  } else {
    line("  let number = group.y * groups.x + group.x;");
  }
  line("  let steps = (params.inner + {}u) / {}u;", t_.block_k - 1, t_.block_k);
  if (what_.splits) {
    line("  let split_blocks = blocks.x * blocks.y - params.whole;\n  let is_split = number >= params.whole;");
    line("  let beyond = number - min(number, params.whole);\n  let split = beyond / max(split_blocks, 1u);");
    line("  let in_split = beyond - split * split_blocks;\n  let id = min(number, params.whole) + in_split;");
    line("  if (is_split && beyond >= split_blocks * params.splits) {{\n    return;\n  }}");
    line("  let first_step = split * params.split_steps;");
    line("  let end_step = select(steps, min(first_step + params.split_steps, steps), is_split);");
  } else {
    line("  let id = number;\n  if (id >= blocks.x * blocks.y) {{\n    return;\n  }}");
    line("  let first_step = 0u;\n  let end_step = steps;");
  }
  line("  let block = block_at(id, blocks, params.band);");
  line("  let block_row = block.x * {}u;\n  let block_column = block.y * {}u;", t_.block_m, t_.block_n);
  line("  let part_row = subgroup % {0}u * {1}u;", t_.block_m / t_.part_m, t_.part_m);
  line("  let part_column = subgroup / {0}u * {1}u;", t_.block_m / t_.part_m, t_.part_n);
}

void MatrixWriter::place_x() {
  const Stage sx = stage_x();
  line("  let x_length = params.x_stride / 8u;");
  line("  let x_row = {};\n  let x_column = index % {}u;", first_row(sx), sx.columns);
  line("  let x_skip = params.x_first / 8u + x_column + first_step * {}u;", sx.columns);
  line("  var x_at = (block_row + x_row) * x_length + x_skip;");
  line("  var x_last = (params.rows - 1u) * x_length + x_skip;");
  line("  let x_down = {}u * x_length;", rows_at_once(sx));
  line("  let x_put = x_row * {}u + x_column;", sx.stride());
  if (!what_.whole_steps) {
    line("  let x_end = params.rows * x_length - 1u;");
    line("  var x_left = i32(params.inner / 8u) - i32(x_column + first_step * {}u);", sx.columns);
  }
  for_sets([&] {
    for (std::uint32_t i = 0; i < vectors(sx); ++i) line("  var x{}{}: vec4<u32>;", i, set());
  });
}

std::string MatrixWriter::fetch_x() const {
  std::string text;
  auto out = std::back_inserter(text);
  for (std::uint32_t i = 0; i < vectors(stage_x()); ++i) {
    if (what_.whole_steps) {
      fmt::format_to(out, "x{0}{1} = x[min(x_at + {0}u * x_down, x_last)]; ", i, set());
    } else {
      fmt::format_to(out, "x{0}{1} = select(vec4<u32>(), x[min(min(x_at + {0}u * x_down, x_last), x_end)], x_left > 0); ", i, set());
    }
  }
  fmt::format_to(out, "x_at += {0}u; x_last += {0}u; ", stage_x().columns);
  if (!what_.whole_steps) fmt::format_to(out, "x_left -= {}; ", stage_x().columns);
  return text;
}

void MatrixWriter::store_x() {
  for (std::uint32_t i = 0; i < vectors(stage_x()); ++i) {
    line("    tiles[x_put + {}u] = x{}{};", i * rows_at_once(stage_x()) * stage_x().stride(), i, set());
  }
}

void MatrixWriter::steps() {
  line("  {}{}", fetch_x(), fetch_w());
  if (!two_sets()) {
    line("  for (var step = first_step; step < end_step; step += params.one) {{");
    step(1);
    return line("  }}");
  }
  set_ = "b";
  line("  if (first_step + 1u < end_step) {{\n    {}{}\n  }}", fetch_x(), fetch_w());
  set_ = "";
  line("  for (var step = first_step; step < end_step; step += 2u * params.one) {{");
  step(2);
  set_ = "b";
  line("    if (step + 1u < end_step) {{");
  step(3);
  set_ = "";
  line("    }}\n  }}");
}

// One step with this set of registers, which then take what comes so many steps later.
void MatrixWriter::step(std::uint32_t ahead) {
  store_x();
  store_w();
  line("    workgroupBarrier();");
  line("    if (step + {}u < end_step) {{\n      {}{}\n    }}", ahead, fetch_x(), fetch_w());
  multiply();
  line("    workgroupBarrier();");
}

// Columns of a tile beyond the tail's end are zero in x's, any finite value in w's. The first split takes it along.
void MatrixWriter::tail() {
  const Stage sx = stage_x();
  line("  let left_length = params.left_stride / 8u;\n  let tail_length = params.tail_inner / 8u;");
  if (nt_) {
    line("  let column = params.y_first + block_column;");
    line("  let left_from = (u32(column >= params.first_end) + u32(column >= params.second_end)) * tail_length;");
  }
  line("  for (var first = 0u; first < {}; first += {}u * params.one) {{",
       what_.splits ? "select(0u, tail_length, split == 0u)" : "tail_length", what_.tail_step / lane);
  line("    let at = first + x_column;\n    let left_at = min(at, tail_length - 1u){};", nt_ ? " + left_from" : "");
  for (std::uint32_t i = 0; i < vectors(sx); ++i) {
    const std::uint32_t row = i * rows_at_once(sx);
    line("    tiles[x_put + {}u] = select(vec4<u32>(), left[min(block_row + x_row + {}u, params.rows - 1u) * left_length + left_at], "
         "at < tail_length);", row * sx.stride(), row);
  }
  tail_step();
  line("    workgroupBarrier();");
  multiply_tail();
  line("    workgroupBarrier();\n  }}");
}

// An f16 output has 2^-6 of the sums, which its row's scale makes up for: exact powers of two.
void MatrixWriter::finish() {
  line("  let own = subgroup * {}u;", strips() * strip_size());
  line("  let y_length = params.y_stride / 4u;");
  for (std::uint32_t first = 0; first < matrices_m(); first += strips()) {
    for (std::uint32_t i = 0; i < strips(); ++i) {
      for (std::uint32_t j = 0; j < matrices_n(); ++j) {
        line("  subgroupMatrixStore<{}>(&tiles, own + {}u, c{}_{}, {}u);", result_layout(),
             i * strip_size() + j * output_edge() / 4, first + i, j, result_stride());
      }
    }
    line("  workgroupBarrier();");
    put(first * token_edge());
    if (first + strips() < matrices_m()) line("  workgroupBarrier();");
  }
  if (what_.output != MatrixOutput::f16) return;
  line("  if (block_column == 0u{}) {{\n    for (var i = index; i < min({}u, params.rows - block_row); i += {}u) {{", what_.splits ? " && split == 0u" : "",
       t_.block_m, t_.invocations());
  line("      y_scale[block_row + i] = x_scale[block_row + i] * params.scale * 64.0;\n    }}\n  }}");
}

// The strips' rows, from that row of the part on, go to y, or a split's to its place. Of y all that several vectors need is asked for
// before the first of them is stored: nothing may be read ahead of a store that could have changed it.
void MatrixWriter::put(std::uint32_t first_row) {
  if (what_.splits) {
    line("  if (is_split) {{\n    let begin = (split * split_blocks + in_split) * {}u;", t_.block_m * t_.block_n / 4);
    each_vector(first_row, 1, [&](std::uint32_t) {
      line("      if (in_y0) {{\n        partial[begin + (row0 - block_row) * {}u + column0 - block_column / 4u] = sums0;\n      }}", t_.block_n / 4);
    });
    line("  }} else {{");
  }
  constexpr std::uint32_t ahead = 4;
  each_vector(first_row, ahead, [&](std::uint32_t count) {
    for (std::uint32_t v = 0; v < count; ++v) {
      line("      let at{0} = select(0u, row{0} * y_length + params.y_first / 4u + column{0}, in_y{0});", v);
      if (what_.output == MatrixOutput::plus) line("      let base{0} = base[at{0}];", v);
      if (what_.output == MatrixOutput::accumulate) {
        line("      var base{0}: vec4<f32>;\n      if (in_y{0}) {{\n        base{0} = y[at{0}];\n      }}", v);
      }
      if (what_.output != MatrixOutput::f16) {
        line("      let scale{0} = params.scale * {1};", v, x_scale(fmt::format("min(row{}, {} - 1u)", v, row_end())));
      }
    }
    for (std::uint32_t v = 0; v < count; ++v) line("      if (in_y{0}) {{\n        y[at{0}] = {1};\n      }}", v, result(v));
  });
  if (what_.splits) line("  }}");
}

}  // namespace nibble::detail
