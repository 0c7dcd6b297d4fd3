#include "nibble/kernels/product_matrix_writer.h"

#include "nibble/base/error.h"
#include "nibble/kernels/kernel.h"
#include "nibble/kernels/nf4.h"

namespace nibble::detail {
namespace {

// Both operands go through workgroup memory: left matrices are x's, right ones w's.
class StagedWriter : public MatrixWriter {
 public:
  StagedWriter(const MatrixTile& tile, const MatrixText& text) : MatrixWriter(tile, text) { check_stage(stage_w()); }

 private:
  // Of w where others store it otherwise: where it begins, and a vector on its way to workgroup memory.
  virtual std::string_view w_base() const { return {}; }
  virtual void declare_w(std::uint32_t i) { line("  var w{}: vec4<u32>;", i); }
  virtual std::string load_w(std::uint32_t i, const std::string& at) const { return fmt::format("w{} = w[{}]; ", i, at); }
  virtual std::string vector_w(std::uint32_t i) const { return fmt::format("w{}", i); }

  Stage stage_w() const { return nt_ ? Stage{t_.block_n, t_.block_k / lane} : Stage{t_.block_k, t_.block_n / lane}; }

  std::uint32_t token_edge() const override { return t_.matrix.m; }
  std::uint32_t output_edge() const override { return t_.matrix.n; }
  std::string_view result_layout() const override { return "row_major"; }
  std::uint32_t tiles_size() const override { return stage_x().size() + stage_w().size(); }

  void place_w() override;
  std::string fetch_w() const override;
  void store_w() override;
  void multiply() override { multiply(t_.block_k); }
  void tail_step() override;
  void multiply_tail() override { multiply(what_.tail_step); }
  void multiply(std::uint32_t inner);
};

void StagedWriter::place_w() {
  const Stage sw = stage_w();
  line("  let w_row = {};\n  let w_column = index % {}u;", first_row(sw), sw.columns);
  if (nt_) {
    line("  let w_length = params.inner / 8u;");
    line("  var w_at = {}(block_column + w_row) * w_length + w_column + first_step * {}u;", w_base(), sw.columns);
    line("  let w_last = {}params.columns * w_length - 1u;", w_base());
  } else {
    line("  let w_length = params.columns / 8u;");
    line("  let w_from = min(block_column / 8u + w_column, w_length - 1u);");
    line("  var w_at = {}(w_row + first_step * {}u) * w_length + w_from;", w_base(), t_.block_k);
    line("  let w_last = {}(params.inner - 1u) * w_length + w_from;", w_base());
  }
  line("  let w_down = {}u * w_length;", rows_at_once(sw));
  line("  let w_put = {}u + w_row * {}u + w_column;", stage_x().size(), sw.stride());
  if (what_.tail_step && nt_) line("  let right_last = params.columns * (params.tail_inner / 8u) - 1u;");
  for_sets([&] {
    for (std::uint32_t i = 0; i < vectors(sw); ++i) declare_w(i);
  });
}

std::string StagedWriter::fetch_w() const {
  std::string text;
  auto out = std::back_inserter(text);
  for (std::uint32_t i = 0; i < vectors(stage_w()); ++i) {
    text += load_w(i, fmt::format("min(w_at + {}u * w_down, w_last)", i));
  }
  if (nt_) {
    fmt::format_to(out, "w_at += {}u;", stage_w().columns);
  } else {
    fmt::format_to(out, "w_at += {}u * w_length;", t_.block_k);
  }
  return text;
}

void StagedWriter::store_w() {
  for (std::uint32_t i = 0; i < vectors(stage_w()); ++i) {
    line("    tiles[w_put + {}u] = {};", i * rows_at_once(stage_w()) * stage_w().stride(), vector_w(i));
  }
}

void StagedWriter::multiply(std::uint32_t inner) {
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

void StagedWriter::tail_step() {
  const Stage sw = stage_w();
  for (std::uint32_t i = 0; i < vectors(sw); ++i) {
    const std::uint32_t row = i * rows_at_once(sw);
    const auto index = nt_ ? fmt::format("min((block_column + w_row + {}u) * tail_length + first + w_column, right_last)", row)
                           : fmt::format("min(first * 8u + w_row + {}u, params.tail_inner - 1u) * w_length + w_from", row);
    line("    tiles[w_put + {}u] = right[{}];", row * sw.stride(), index);
  }
}

// Weights in NF4: a vector of w is a word of eight codes, decoded on its way to workgroup memory.
class DecodingWriter : public StagedWriter {
 public:
  using StagedWriter::StagedWriter;

 protected:
  // Its first binding; `lookup` declares four_codes(word), the values of a word's lower half.
  void declare_codes(std::uint32_t binding, std::string_view lookup) {
    line("@group(0) @binding({}) var<storage, read> absmax: array<f32>;\n{}\n{}", binding, nf4_codes_text(what_.codes), lookup);
    line("fn four(word: u32, scale: f32) -> vec2<u32> {{\n  return bitcast<vec2<u32>>(vec4<f16>(four_codes(word) * scale));\n}}");
    line("fn eight(word: u32, scale: f32) -> vec4<u32> {{\n  return vec4<u32>(four(word, scale), four(word >> 16u, scale));\n}}");
  }

 private:
  virtual std::string_view factor() const = 0;

  std::string_view w_type() const override { return "u32"; }
  void declare_w(std::uint32_t i) override { line("  var w{0}{1}: u32;\n  var m{0}{1}: f32;", i, set()); }
  std::string load_w(std::uint32_t i, const std::string& at) const override {
    return fmt::format("w{0}{2} = w[{1}]; m{0}{2} = absmax[{1} / 8u]; ", i, at, set());
  }
  std::string vector_w(std::uint32_t i) const override { return fmt::format("eight(w{0}{2}, m{0}{2} * {1})", i, factor(), set()); }
};

// One weight for all rows. Lanes look codes up in their subgroup's registers.
class Nf4Writer final : public DecodingWriter {
 public:
  using DecodingWriter::DecodingWriter;

 private:
  std::string_view factor() const override { return "(1.0 / params.scale)"; }
  void declare_more(std::uint32_t next) override {
    line("const SUBGROUP = {}u;\n{}", t_.subgroup, embedded_wgsl().at("lib/subgroup_codes"));
    declare_codes(next, R"(fn four_codes(word: u32) -> vec4<f32> {
  return vec4<f32>(code((word >> 4u) & 15u), code(word & 15u), code((word >> 12u) & 15u), code((word >> 8u) & 15u));
})");
  }
  void place_block() override {
    DecodingWriter::place_block();
    line("  prepare_codes(lane);");
  }
};

class ExpertWriter final : public DecodingWriter {
 public:
  using DecodingWriter::DecodingWriter;

 private:
  std::string_view w_base() const override { return "w_first + "; }
  std::string_view factor() const override { return "params.factor"; }
  std::string_view more_params() const override { return ", tiles: u32, first_expert: u32, bound_experts: u32, factor: f32"; }
  void declare_more(std::uint32_t next) override;
  void place_block() override;
  void place_x() override;
  std::string fetch_x() const override;
  std::string_view row_end() const override { return "row_end"; }
  std::string x_scale(const std::string& row) const override { return fmt::format("x_scale[source_of({})]", row); }
};

void ExpertWriter::declare_more(std::uint32_t next) {
  declare_codes(next, embedded_wgsl().at("lib/nf4_codes"));
  line("@group(0) @binding({}) var<storage, read> expert_tiles: array<u32>;", next + 1);
  line("@group(0) @binding({}) var<storage, read> slot_of_row: array<u32>;", next + 2);
  line("fn source_of(row: u32) -> u32 {{\n  return {};\n}}",
       what_.per_token > 0 ? fmt::format("slot_of_row[row] / {}u", what_.per_token) : "row");
}

// A block is a tile of rows of one expert, by so many columns.
void ExpertWriter::place_block() {
  // There may be fewer invocations than codes.
  line("  for (var i = index; i < 16u; i += {}u) {{\n    nf4_codes[i] = NF4_CODES[i];\n  }}\n  workgroupBarrier();", t_.invocations());
  line("  let across = (params.columns + {}u) / {}u;", t_.block_n - 1, t_.block_n);
  line("  let number = group.y * groups.x + group.x;\n  let tile = number / across;");
  line("  if (tile >= params.tiles) {{\n    return;\n  }}");
  line("  let expert = expert_tiles[3u * tile];\n  let block_row = expert_tiles[3u * tile + 1u];\n  let rows = expert_tiles[3u * tile + 2u];");
  line("  if (rows == 0u || expert < params.first_expert || expert - params.first_expert >= params.bound_experts) {{\n    return;\n  }}");
  line("  let row_end = block_row + rows;\n  let block_column = number % across * {}u;", t_.block_n);
  line("  let first_step = 0u;\n  let end_step = (params.inner + {}u) / {}u;", t_.block_k - 1, t_.block_k);
  line("  let part_row = subgroup % {0}u * {1}u;", t_.block_m / t_.part_m, t_.part_m);
  line("  let part_column = subgroup / {0}u * {1}u;", t_.block_m / t_.part_m, t_.part_n);
  line("  let w_first = (expert - params.first_expert) * (params.inner * params.columns / 8u);");
}

void ExpertWriter::place_x() {
  const Stage sx = stage_x();
  line("  let x_length = params.x_stride / 8u;\n  let x_row = {};\n  let x_column = index % {}u;", first_row(sx), sx.columns);
  line("  let x_put = x_row * {}u + x_column;\n  var x_at = x_column;", sx.stride());
  line("  let x_end = params.rows * x_length - 1u;");
  if (!what_.whole_steps) line("  var x_left = i32(x_length) - i32(x_column);");
  for (std::uint32_t i = 0; i < vectors(sx); ++i) {
    line("  let from{0} = source_of(min(block_row + x_row + {1}u, row_end - 1u)) * x_length;\n  var x{0}: vec4<u32>;", i, i * rows_at_once(sx));
  }
}

std::string ExpertWriter::fetch_x() const {
  std::string text;
  auto out = std::back_inserter(text);
  for (std::uint32_t i = 0; i < vectors(stage_x()); ++i) {
    if (what_.whole_steps) {
      fmt::format_to(out, "x{0} = x[from{0} + x_at]; ", i);
    } else {
      fmt::format_to(out, "x{0} = select(vec4<u32>(), x[min(from{0} + x_at, x_end)], x_left > 0); ", i);
    }
  }
  fmt::format_to(out, "x_at += {}u; ", stage_x().columns);
  if (!what_.whole_steps) fmt::format_to(out, "x_left -= {}; ", stage_x().columns);
  return text;
}

// The weight lies in tiles of the left matrices' form, for NN those of its transpose, and is loaded from there; x goes through
// workgroup memory. Results lie on their side: their rows are y's columns.
class DirectWriter final : public MatrixWriter {
 public:
  DirectWriter(const MatrixTile& tile, const MatrixText& text) : MatrixWriter(tile, text) {
    check(t_.matrix.m == t_.matrix.k, "product_matrix", "Tiles of weights are square, not {} x {}.", t_.matrix.m, t_.matrix.k);
  }

 private:
  std::uint32_t edge() const { return t_.matrix.m; }
  std::uint32_t tile_vectors() const { return edge() * edge() / lane; }

  std::uint32_t token_edge() const override { return t_.matrix.n; }
  std::uint32_t output_edge() const override { return t_.matrix.m; }
  std::string_view result_layout() const override { return "col_major"; }
  std::uint32_t tiles_size() const override { return stage_x().size(); }

  void place_w() override;
  std::string fetch_w() const override { return {}; }
  void store_w() override {}
  void multiply() override;
  void tail_step() override {}
  void multiply_tail() override;
  void multiply_with_x(std::uint32_t k);
};

// w_j: the vector where the j-th row of matrices of the part begins, with the first inner tile. Rows beyond the weight's end
// are brought back to the last.
void DirectWriter::place_w() {
  line("  let output_tiles = params.columns / {}u;", edge());
  line("  let inner_tiles = (params.inner + {}u) / {}u;", edge() - 1, edge());
  line("  let x_from = part_row * {}u;", stage_x().stride());
  for (std::uint32_t j = 0; j < matrices_n(); ++j) {
    line("  let row{0} = min((block_column + part_column) / {1}u + {0}u, output_tiles - 1u);", j, edge());
    line("  let w_{0} = row{0} * inner_tiles * {1}u;", j, tile_vectors());
  }
}

// The products of the left matrices a_j with x's, from column k of its tile on.
void DirectWriter::multiply_with_x(std::uint32_t k) {
  for (std::uint32_t i = 0; i < matrices_m(); ++i) {
    line("      let b{} = subgroupMatrixLoad<Right, col_major>(&tiles, x_from + {}u, {}u);", i,
         i * token_edge() * stage_x().stride() + k / lane, stage_x().stride());
    for (std::uint32_t j = 0; j < matrices_n(); ++j) {
      line("      c{0}_{1} = subgroupMatrixMultiplyAccumulate(a{1}, b{0}, c{0}_{1});", i, j);
    }
  }
}

void DirectWriter::multiply() {
  const std::uint32_t step_tiles = t_.block_k / edge();
  line("    let inner_tile = step * {}u;", step_tiles);
  for (std::uint32_t t = 0; t < step_tiles; ++t) {
    line("    {{");
    line("      let w_at = {} * {}u;", what_.whole_steps ? fmt::format("(inner_tile + {}u)", t)
                                                         : fmt::format("min(inner_tile + {}u, inner_tiles - 1u)", t), tile_vectors());
    for (std::uint32_t j = 0; j < matrices_n(); ++j) {
      line("      let a{0} = subgroupMatrixLoad<Left, row_major>(&w, w_{0} + w_at, {1}u);", j, edge() / lane);
    }
    multiply_with_x(t * edge());
    line("    }}");
  }
}

// LoRA's matrices are few, and read as they lie in rows.
void DirectWriter::multiply_tail() {
  for (std::uint32_t k = 0; k < what_.tail_step; k += edge()) {
    line("    {{");
    line("      let inner = min(first + {}u, tail_length - {}u);", k / lane, edge() / lane);
    for (std::uint32_t j = 0; j < matrices_n(); ++j) {
      if (nt_) {
        line("      let a{0} = subgroupMatrixLoad<Left, row_major>(&right, row{0} * {1}u * tail_length + inner, tail_length);", j, edge());
      } else {
        line("      let a{0} = subgroupMatrixLoad<Left, col_major>(&right, inner * params.columns + row{0} * {1}u, params.columns / 8u);",
             j, edge() / lane);
      }
    }
    multiply_with_x(k);
    line("    }}");
  }
}

}  // namespace

std::string matrix_text(const MatrixTile& tile, const MatrixText& text) {
  if (text.experts) return ExpertWriter(tile, text).text();
  if (text.decodes) return Nf4Writer(tile, text).text();
  if (tile.direct) return DirectWriter(tile, text).text();
  return StagedWriter(tile, text).text();
}

}  // namespace nibble::detail
