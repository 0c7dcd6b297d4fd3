#include "nibble/kernels/attention_matrix_writer.h"

#include "nibble/base/error.h"

namespace nibble::detail {

AttentionWriter::AttentionWriter(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim)
    : t_(tile), pass_(pass), dim_(head_dim) {
  const std::uint32_t units = t_.columns / 8, all = t_.invocations();
  const bool even = all % units == 0 && t_.rows * units % all == 0 && all % t_.rows == 0 && score_rows() % edge == 0 &&
                    score_columns() % edge == 0 && result_rows() % edge == 0 && result_columns() % edge == 0;
  check(even, "attention", "Blocks of {} x {} do not divide among {} invocations.", t_.rows, t_.columns, all);
}

void AttentionWriter::declarations() {
  line("enable f16;\nenable subgroups;\nenable chromium_experimental_subgroup_matrix;");
  line("struct Params {{ tokens: u32, padded: u32, heads: u32, group: u32, parts: u32, q: u32, k: u32, v: u32,");
  line("  d_o: u32, q_turned: u32, k_turned: u32, v_turned: u32, d_o_turned: u32, q_scale: u32, k_scale: u32, v_scale: u32,");
  line("  d_o_scale: u32, lse: u32, delta: u32, scale: f32 }}");
  line("@group(0) @binding(0) var<uniform> params: Params;");
  line("@group(0) @binding(1) var<storage, read> operands: array<vec4<u32>>;");
  line("@group(0) @binding(2) var<storage, read> numbers: array<vec4<f32>>;");
  line("var<workgroup> room: array<vec4<u32>, {}>;", room_size());
  line("var<workgroup> partial: array<f32, {}>;", t_.subgroups);
  line("alias Left = subgroup_matrix_left<f16, {}, {}>;", t_.matrix.k, t_.matrix.m);
  line("alias Right = subgroup_matrix_right<f16, {}, {}>;", t_.matrix.n, t_.matrix.k);
  line("alias Result = subgroup_matrix_result<f32, {}, {}>;", t_.matrix.n, t_.matrix.m);
  line("const LOG2_E = 1.44269504;\nconst LOWEST = -1e30;");
  // The largest dot product of two packed rows, whose values are below 2^14.
  line("const MOST_DOT = {}f;", 268435456.0 * dim_);
  text_ += R"(
fn number(at: u32) -> f32 {
  return numbers[at / 4u][at % 4u];
}
fn eight(low: vec4<f32>, high: vec4<f32>) -> vec4<u32> {
  return vec4<u32>(bitcast<vec2<u32>>(vec4<f16>(low)), bitcast<vec2<u32>>(vec4<f16>(high)));
}
fn largest(value: vec4<f32>) -> f32 {
  return max(max(value.x, value.y), max(value.z, value.w));
}
// A power of two that brings what is at most `bound` to 2^14 at most.
fn fit(bound: f32) -> f32 {
  return 8192.0 / bitcast<f32>(bitcast<u32>(clamp(bound, 1e-30, 1e30)) & 0x7f800000u);
}
fn workgroup_max(value: f32, subgroup: u32, lane: u32) -> f32 {
  let own = subgroupMax(value);
  if (lane == 0u) {
    partial[subgroup] = own;
  }
  workgroupBarrier();
  var most = partial[0];
)";
  line("  for (var i = 1u; i < {}u; i++) {{\n    most = max(most, partial[i]);\n  }}", t_.subgroups);
  line("  workgroupBarrier();\n  return most;\n}}");
}

void AttentionWriter::begin(const char* first) {
  line("@compute @workgroup_size({})", t_.invocations());
  line("fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,");
  line("        @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {{");
  line("  let index = subgroup * {}u + lane;", t_.subgroup);
  line("  let first = {} * {}u;", first, t_.rows);
  line("  let last = min(first + {}u, params.tokens) - 1u;", t_.rows);
  line("  let score_row = subgroup / {}u * {}u;", t_.scores_across, score_rows());
  line("  let score_column = subgroup % {}u * {}u;", t_.scores_across, score_columns());
  line("  let result_row = subgroup / {}u * {}u;", t_.results_across, result_rows());
  line("  let result_column = subgroup % {}u * {}u;", t_.results_across, result_columns());
  line("  let scores_from = score_row * {}u + score_column / 4u;", score_stride());
  line("  let weights_from = {}u + result_row * {}u;", weights_at(), weight_stride());
  line("  let strip = subgroup * {}u;", strip_size());
  line("  // Vectors of 8 to the subgroup's share of a block.");
  line("  let rows_at = (first + score_row) * {}u;", dim_ / 8);
  line("  let columns_at = score_column * {}u;", dim_ / 8);
  line("  let results_at = result_column * 2u;");
}

// `body` for the steps of matrix.k that an inner dimension of `length` has, given the step and how far on its operands lie,
// of which tiles follow in `tile_step` vectors. Unrolled it is faster on GPUs; for a processor compiling it would take long.
void AttentionWriter::steps(std::uint32_t length, std::uint32_t tile_step, const StepBody& body) {
  const std::uint32_t in_tile = edge / t_.matrix.k, count = length / t_.matrix.k;
  if (t_.unroll) {
    for (std::uint32_t step = 0; step < count; ++step) {
      line("    {{");
      body(fmt::format("{}u", step), fmt::format("{}u", step / in_tile * tile_step + step % in_tile));
      line("    }}");
    }
  } else {
    line("    for (var step = 0u; step < {}u; step++) {{", count);
    body("step", fmt::format("(step / {0}u * {1}u + step % {0}u)", in_tile, tile_step));
    line("    }}");
  }
}

void AttentionWriter::scores(const char* left, const char* right, std::uint32_t tile) {
  const std::uint32_t down = score_rows() / t_.matrix.m, across = score_columns() / t_.matrix.n;
  line("    {{");
  for (std::uint32_t i = 0; i < down; ++i)
    for (std::uint32_t j = 0; j < across; ++j) line("    var s{}_{} = Result();", i, j);
  steps(dim_, tile_vectors, [&](const std::string&, const std::string& further) {
    for (std::uint32_t i = 0; i < down; ++i) {
      line("      let a{} = subgroupMatrixLoad<Left, row_major>(&operands, {} + {} + {}u, 2u);", i, left, further,
           plain_row(i * t_.matrix.m));
    }
    for (std::uint32_t j = 0; j < across; ++j) {
      line("      let b{} = subgroupMatrixLoad<Right, col_major>(&operands, {} + {} + {}u, 2u);", j, right, further,
           plain_row(j * t_.matrix.n));
      for (std::uint32_t i = 0; i < down; ++i) {
        line("      s{0}_{1} = subgroupMatrixMultiplyAccumulate(a{0}, b{1}, s{0}_{1});", i, j);
      }
    }
  });
  for (std::uint32_t i = 0; i < down; ++i) {
    for (std::uint32_t j = 0; j < across; ++j) {
      line("    subgroupMatrixStore<row_major>(&room, scores_from + {}u, s{}_{}, {}u);",
           tile * scores_size() + i * t_.matrix.m * score_stride() + j * t_.matrix.n / 4, i, j, score_stride());
    }
  }
  line("    }}");
}

void AttentionWriter::declare_results(char results) {
  for_results([&](auto i, auto j) { line("  var {}{}_{}: Result;", results, i, j); });
}

void AttentionWriter::accumulate(char results, std::uint32_t tile, const char* right) {
  const std::uint32_t down = result_rows() / t_.matrix.m, across = result_columns() / t_.matrix.n;
  steps(t_.columns, dim_ / edge * tile_vectors, [&](const std::string& step, const std::string& further) {
    for (std::uint32_t i = 0; i < down; ++i) {
      line("      let a{} = subgroupMatrixLoad<Left, row_major>(&room, weights_from + {} * {}u + {}u, {}u);", i, step,
           t_.matrix.k / 8, (tile * t_.rows + i * t_.matrix.m) * weight_stride(), weight_stride());
    }
    for (std::uint32_t j = 0; j < across; ++j) {
      line("      let b{} = subgroupMatrixLoad<Right, col_major>(&operands, {} + {} + {}u, 2u);", j, right, further,
           turned_column(j * t_.matrix.n));
      for (std::uint32_t i = 0; i < down; ++i) {
        line("      {0}{1}_{2} = subgroupMatrixMultiplyAccumulate(a{1}, b{2}, {0}{1}_{2});", results, i, j);
      }
    }
  });
}

void AttentionWriter::store_strip(char results, std::uint32_t i) {
  for (std::uint32_t j = 0; j < result_columns() / t_.matrix.n; ++j) {
    line("  subgroupMatrixStore<row_major>(&room, strip + {}u, {}{}_{}, {}u);", j * t_.matrix.n / 4, results, i, j,
         strip_stride());
  }
}

void AttentionWriter::write_results(char results, const char* output, const std::string& row_at, const char* factor) {
  const std::uint32_t vectors = result_columns() / 4;
  for (std::uint32_t i = 0; i < result_rows() / t_.matrix.m; ++i) {
    line("  workgroupBarrier();");
    store_strip(results, i);
    line("  workgroupBarrier();");
    line("  for (var i = lane; i < {}u; i += {}u) {{", t_.matrix.m * vectors, t_.subgroup);
    line("    let row = result_row + {}u + i / {}u;", i * t_.matrix.m, vectors);
    line("    if (first + row <= last) {{");
    line("      let sums = bitcast<vec4<f32>>(room[strip + i / {0}u * {1}u + i % {0}u]);", vectors, strip_stride());
    line("      {}[{} + result_column / 4u + i % {}u] = sums * ({});", output, row_at, vectors, factor);
    line("    }}\n  }}");
  }
}

void AttentionWriter::columns_numbers(const char* name, const char* at) {
  line("    let {0}0 = numbers[({1}) / 4u + unit * 2u];\n    let {0}1 = numbers[({1}) / 4u + unit * 2u + 1u];", name, at);
}

}  // namespace nibble::detail
