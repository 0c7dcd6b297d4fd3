#include "nibble/kernels/packed_attention_writer.h"

#include "nibble/base/error.h"

#include <algorithm>

namespace nibble::detail {

PackedAttentionWriter::PackedAttentionWriter(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim)
    : t_(tile), pass_(pass), dim_(head_dim) {
  const std::uint32_t all = t_.invocations();
  const bool even = all % t_.rows == 0 && t_.columns % (parts() * 8) == 0 && t_.subgroup % parts() == 0 &&
                    all % length() == 0 && t_.columns % rows_at_once() == 0 && t_.rows % rows_at_once() == 0 &&
                    score_rows() % t_.matrix.m == 0 && score_columns() % t_.matrix.n == 0 &&
                    result_rows() % t_.matrix.m == 0 && result_columns() % t_.matrix.n == 0;
  check(even, "packed_attention", "Blocks of {} x {} do not divide among {} invocations.", t_.rows, t_.columns, all);
}

std::uint32_t PackedAttentionWriter::room_size() const {
  return std::max({numbers_at(pass_ == AttentionPass::key_gradients ? 2 : 0), strip_size() * t_.subgroups, t_.rows * stride()});
}

void PackedAttentionWriter::declarations() {
  line("enable f16;\nenable subgroups;\nenable chromium_experimental_subgroup_matrix;");
  line("struct Params {{ tokens: u32, heads: u32, key_heads: u32, parts: u32, scale: f32 }}");
  line("@group(0) @binding(0) var<uniform> params: Params;");
  line("@group(0) @binding(1) var<storage, read> qk: array<vec4<u32>>;");
  line("@group(0) @binding(2) var<storage, read> qk_scale: array<f32>;");
  line("@group(0) @binding(3) var<storage, read> qkv: array<vec4<u32>>;");
  line("@group(0) @binding(4) var<storage, read> v_scale: array<f32>;");
  line("@group(0) @binding(5) var<storage, read> v_most: array<f32>;");
  line("var<workgroup> room: array<vec4<u32>, {}>;", room_size());
  line("var<workgroup> partial: array<f32, {}>;", t_.subgroups);
  line("alias Left = subgroup_matrix_left<f16, {}, {}>;", t_.matrix.k, t_.matrix.m);
  line("alias Right = subgroup_matrix_right<f16, {}, {}>;", t_.matrix.n, t_.matrix.k);
  line("alias Result = subgroup_matrix_result<f32, {}, {}>;", t_.matrix.n, t_.matrix.m);
  line("const LOG2_E = 1.44269504;\nconst LOWEST = -1e30;\nconst TINY = 0x1p-80f;\nconst WEIGHT = 16.0;");
  line("const HEAD = {}u;  // vectors of 8 in a head's row", length());
  text_ += R"(
fn eight(low: vec4<f32>, high: vec4<f32>) -> vec4<u32> {
  return vec4<u32>(bitcast<vec2<u32>>(vec4<f16>(low)), bitcast<vec2<u32>>(vec4<f16>(high)));
}
fn scaled(value: vec4<u32>, factor: f32) -> vec4<u32> {
  let low = bitcast<vec4<f16>>(value.xy) * f16(factor);
  let high = bitcast<vec4<f16>>(value.zw) * f16(factor);
  return vec4<u32>(bitcast<vec2<u32>>(low), bitcast<vec2<u32>>(high));
}
// By a factor that may exceed f16's range where the product does not.
fn scaled_twice(value: vec4<u32>, factor: f32) -> vec4<u32> {
  return scaled(scaled(value, min(factor, 32768.0)), max(factor * 0x1p-15f, 1.0));
}
fn largest(value: vec4<f32>) -> f32 {
  return max(max(value.x, value.y), max(value.z, value.w));
}
// A power of two that brings what is at most `bound` to 2^14 at most.
fn fit(bound: f32) -> f32 {
  return 8192.0 / bitcast<f32>(bitcast<u32>(clamp(bound, 1e-24, 1e30)) & 0x7f800000u);
}
fn inverse_power(power: f32) -> f32 {
  return bitcast<f32>(0x7f000000u - bitcast<u32>(power));
}
// The power of two that brings it to [2^13, 2^14) where it is divided by it.
fn unit_of(most: f32) -> f32 {
  return bitcast<f32>((bitcast<u32>(most) & 0x7f800000u) - (13u << 23u));
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

void PackedAttentionWriter::begin(const char* first) {
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
  line("  let strip = subgroup * {}u;", strip_size());
  line("  let q_length = params.heads * {0}u;\n  let qk_length = q_length + params.key_heads * {0}u;", length());
  line("  let qkv_length = qk_length + params.key_heads * {}u;\n  let group_size = params.heads / params.key_heads;", length());
  line("  let row = index / {0}u;\n  let part = index % {0}u;", parts());
  line("  let fetch_row = index / {0}u;\n  let fetch_column = index % {0}u;", length());
  line("  let fetch_put = fetch_row * {}u + fetch_column;", stride());
}

void PackedAttentionWriter::fetch_own(std::uint32_t i, const char* operand, const char* rows, const char* row_length) {
  for (std::uint32_t n = 0; n < t_.rows / rows_at_once(); ++n) {
    line("  let given{}_{} = {}[{} + min(first + fetch_row + {}u, last) * {} + fetch_column];", i, n, operand, rows,
         n * rows_at_once(), row_length);
  }
}

void PackedAttentionWriter::keep_own(std::uint32_t i) {
  const std::uint32_t put = t_.own_in_registers ? 0 : own(i);
  for (std::uint32_t n = 0; n < t_.rows / rows_at_once(); ++n) {
    line("  room[fetch_put + {}u] = given{}_{};", put + n * rows_at_once() * stride(), i, n);
  }
  if (!t_.own_in_registers) return;
  line("  workgroupBarrier();");
  for (std::uint32_t m = 0; m < score_rows() / t_.matrix.m; ++m) {
    for (std::uint32_t step = 0; step < dim_ / t_.matrix.k; ++step) {
      line("  let own{}_{}_{} = subgroupMatrixLoad<Left, row_major>(&room, score_row * {}u + {}u, {}u);", i, m, step, stride(),
           m * t_.matrix.m * stride() + step * t_.matrix.k / 8, stride());
    }
  }
  line("  workgroupBarrier();");
}

void PackedAttentionWriter::declare_stages() {
  for (std::uint32_t i = 0; i < 2; ++i)
    for (std::uint32_t n = 0; n < fetches(); ++n) line("  var next{0}_{1}: vec4<u32>;\n  var scale{0}_{1}: f32;", i, n);
}

void PackedAttentionWriter::fetch(std::uint32_t i, const Source& source, const char* token) {
  for (std::uint32_t n = 0; n < fetches(); ++n) {
    line("    {{\n      let token = min({} + fetch_row + {}u, params.tokens - 1u);", token, n * rows_at_once());
    line("      next{}_{} = {}[{} + token * {} + fetch_column];", i, n, source.operand, source.rows, source.row_length);
    line("      scale{}_{} = {}[token];\n    }}", i, n, source.scales);
  }
}

void PackedAttentionWriter::find_largest(const char* count, std::initializer_list<Largest> wanted) {
  // Several loads at a time: each takes as long as several blocks' products.
  constexpr std::uint32_t at_once = 4;
  line("  for (var i = index; i < {}; i += {}u) {{", count, at_once * t_.invocations());
  for (std::uint32_t n = 0; n < at_once; ++n) {
    line("    {{\n      let at = min(i + {}u, {} - 1u);", n * t_.invocations(), count);
    for (const auto& value : wanted) line("      most_{0} = max(most_{0}, {1});", value.name, value.value);
    line("    }}");
  }
  line("  }}");
  for (const auto& value : wanted) line("  most_{0} = workgroup_max(most_{0}, subgroup, lane);", value.name);
}

void PackedAttentionWriter::store_stage(std::uint32_t i, const char* token) {
  for (std::uint32_t n = 0; n < fetches(); ++n) {
    // Not where the scale is read, which would wait for it there.
    line("    {{\n      let factor = select(0.0, scale{0}_{1} * inverse{0}, {2} + fetch_row + {3}u < end);", i, n, token,
         n * rows_at_once());
    // Queries and keys are brought to the largest of their own scales, which makes factors of at most 1.
    line("      room[fetch_put + {2}u] = {3}(next{0}_{1}, factor);\n    }}", i, n, stage(i) + n * rows_at_once() * stride(),
         i == 0 ? "scaled" : "scaled_twice");
  }
}

// `body` for the steps of matrix.k that an inner dimension of `length` has. Unrolled it is faster on GPUs; for a processor
// compiling it would take long.
void PackedAttentionWriter::steps(std::uint32_t length, const std::function<void(const Step&)>& body) {
  const std::uint32_t count = length / t_.matrix.k;
  if (t_.unroll) {
    for (std::uint32_t step = 0; step < count; ++step) {
      line("    {{");
      body({true, step});
      line("    }}");
    }
  } else {
    line("    for (var step = 0u; step < {}u; step++) {{", count);
    body({false, 0});
    line("    }}");
  }
}

void PackedAttentionWriter::scores(std::uint32_t tile) {
  const std::uint32_t down = score_rows() / t_.matrix.m, across = score_columns() / t_.matrix.n;
  line("    {{");
  for (std::uint32_t i = 0; i < down; ++i)
    for (std::uint32_t j = 0; j < across; ++j) line("    var s{}_{} = Result();", i, j);
  steps(dim_, [&](const Step& step) {
    for (std::uint32_t i = 0; i < down; ++i) {
      if (t_.own_in_registers) {
        line("      let a{} = own{}_{}_{};", i, tile, i, step.value);
      } else {
        line("      let a{} = subgroupMatrixLoad<Left, row_major>(&room, score_row * {}u + {}u + {}, {}u);", i, stride(),
             own(tile) + i * t_.matrix.m * stride(), step.times(t_.matrix.k / 8), stride());
      }
    }
    for (std::uint32_t j = 0; j < across; ++j) {
      line("      let b{} = subgroupMatrixLoad<Right, col_major>(&room, score_column * {}u + {}u + {}, {}u);", j, stride(),
           stage(tile) + j * t_.matrix.n * stride(), step.times(t_.matrix.k / 8), stride());
      for (std::uint32_t i = 0; i < down; ++i) {
        line("      s{0}_{1} = subgroupMatrixMultiplyAccumulate(a{0}, b{1}, s{0}_{1});", i, j);
      }
    }
  });
  for (std::uint32_t i = 0; i < down; ++i) {
    for (std::uint32_t j = 0; j < across; ++j) {
      line("    subgroupMatrixStore<row_major>(&room, score_row * {}u + score_column / 4u + {}u, s{}_{}, {}u);", score_stride(),
           scores_at(tile) + i * t_.matrix.m * score_stride() + j * t_.matrix.n / 4, i, j, score_stride());
    }
  }
  line("    }}");
}

void PackedAttentionWriter::declare_results(char results) {
  for_results([&](auto i, auto j) { line("  var {}{}_{} = Result();", results, i, j); });
}

std::string PackedAttentionWriter::weight_column(const Step& step) const {
  if (!in_place()) return step.times(t_.matrix.k / 8);
  if (t_.matrix.k == 16) return step.times(4);
  return step.known ? fmt::format("{}u", step.value / 2 * 4 + step.value % 2) : "step / 2u * 4u + step % 2u";
}

void PackedAttentionWriter::accumulate(char results, std::uint32_t tile, std::uint32_t from) {
  const std::uint32_t down = result_rows() / t_.matrix.m, across = result_columns() / t_.matrix.n;
  steps(t_.columns, [&](const Step& step) {
    for (std::uint32_t i = 0; i < down; ++i) {
      line("      let a{} = subgroupMatrixLoad<Left, row_major>(&room, result_row * {}u + {}u + {}, {}u);", i, weight_stride(),
           weights_at(tile) + i * t_.matrix.m * weight_stride(), weight_column(step), weight_stride());
    }
    for (std::uint32_t j = 0; j < across; ++j) {
      line("      let b{} = subgroupMatrixLoad<Right, row_major>(&room, result_column / 8u + {}u + {}, {}u);", j,
           stage(from) + j * t_.matrix.n / 8, step.times(t_.matrix.k * stride()), stride());
      for (std::uint32_t i = 0; i < down; ++i) {
        line("      {0}{1}_{2} = subgroupMatrixMultiplyAccumulate(a{1}, b{2}, {0}{1}_{2});", results, i, j);
      }
    }
  });
}

void PackedAttentionWriter::store_strip(char results, std::uint32_t i) {
  for (std::uint32_t j = 0; j < result_columns() / t_.matrix.n; ++j) {
    line("  subgroupMatrixStore<row_major>(&room, strip + {}u, {}{}_{}, {}u);", j * t_.matrix.n / 4, results, i, j,
         strip_stride());
  }
}

void PackedAttentionWriter::write_results(char results, const char* output, const std::string& row_at, const char* factor) {
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

std::string PackedAttentionWriter::column(std::uint32_t n) const {
  const std::uint32_t in_unit = unit() / 4;
  return fmt::format("(part * {}u + {}u)", unit(), n / in_unit * parts() * unit() + n % in_unit * 4);
}

std::string PackedAttentionWriter::score(std::uint32_t tile, std::uint32_t n) const {
  return fmt::format("bitcast<vec4<f32>>(room[{}u + row * {}u + {} / 4u])", scores_at(tile), score_stride(), column(n));
}

void PackedAttentionWriter::store_weights(const char* name, std::uint32_t tile) {
  for (std::uint32_t n = 0; n < vectors(); n += 2) {
    const std::uint32_t first = n * 4 / unit() * parts() * unit(), within = n * 4 % unit();
    const std::uint32_t step = in_place() ? 4 : unit() / 8, at = first / unit() * step + within / 8;
    line("    room[{}u + row * {}u + part * {}u] = eight({}{}, {}{});", weights_at(tile) + at, weight_stride(), step, name, n,
         name, n + 1);
  }
}

}  // namespace nibble::detail
