#include "nibble/kernels/packed_attention_writer.h"

#include "nibble/base/error.h"

#include <algorithm>

namespace nibble::detail {

PackedAttentionWriter::PackedAttentionWriter(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim)
    : t_(tile), pass_(pass), dim_(head_dim) {
  const std::uint32_t all = t_.invocations();
  const bool even = all % t_.rows == 0 && t_.columns == parts() * 8 && t_.subgroup % parts() == 0 &&
                    all % lanes_a_row() == 0 && t_.columns % rows_at_once() == 0 && t_.rows % rows_at_once() == 0 &&
                    (!in_place() || parts() % 2 == 0) &&
                    score_rows() % t_.matrix.m == 0 && score_columns() % t_.matrix.n == 0 &&
                    result_rows() % t_.matrix.m == 0 && result_columns() % t_.matrix.n == 0;
  check(even, "packed_attention", "Blocks of {} x {} do not divide among {} invocations.", t_.rows, t_.columns, all);
}

std::uint32_t PackedAttentionWriter::room_size() const {
  const std::uint32_t weights = in_place() ? scores_at(operands()) : weights_at(0) + t_.rows * weight_stride();
  const std::uint32_t own = t_.own_in_registers ? operands() * t_.rows * (own_length() + 1) : 0;
  return std::max({weights, own, strip_size() * t_.subgroups});
}

void PackedAttentionWriter::declarations() {
  line("enable f16;\nenable subgroups;\nenable chromium_experimental_subgroup_matrix;");
  line("struct Params {{ tokens: u32, heads: u32, key_heads: u32, parts: u32, scale: f32, first_row: u32, capacity: u32 }}");
  line("@group(0) @binding(0) var<uniform> params: Params;");
  line("@group(0) @binding(1) var<storage, read> qk: array<vec4<u32>>;");
  line("@group(0) @binding(2) var<storage, read> qk_scale: array<f32>;");
  if (from_caches()) {
    line("@group(0) @binding(3) var<storage, read> k_cache: array<vec4<u32>>;");
    line("@group(0) @binding(4) var<storage, read> v_cache: array<vec4<u32>>;");
  } else {
    line("@group(0) @binding(3) var<storage, read> qkv: array<vec4<u32>>;");
    line("@group(0) @binding(4) var<storage, read> v_scale: array<f32>;");
    line("@group(0) @binding(5) var<storage, read> v_most: array<f32>;");
  }
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
  line("        @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32,");
  line("        @builtin(local_invocation_index) index: u32) {{");
  line("  let first = params.first_row + {} * {}u;", first, t_.rows);
  line("  let last = min(first + {}u, params.tokens) - 1u;", t_.rows);
  line("  let score_row = subgroup % {}u / {}u * {}u;", score_subgroups(), t_.scores_across, score_rows());
  line("  let score_column = subgroup % {}u * {}u;", t_.scores_across, score_columns());
  line("  let result_row = subgroup % {}u / {}u * {}u;", result_subgroups(), t_.results_across, result_rows());
  line("  let result_column = subgroup % {}u * {}u;", t_.results_across, result_columns());
  if (two()) line("  let half = subgroup / {}u;", t_.subgroups / 2);
  line("  let strip = subgroup * {}u;", strip_size());
  line("  let q_length = params.heads * {0}u;\n  let qk_length = q_length + params.key_heads * {0}u;", length());
  line("  let qkv_length = qk_length + params.key_heads * {}u;\n  let group_size = params.heads / params.key_heads;", length());
  line("  let row = subgroup * {0}u + lane % {0}u;\n  let part = lane / {0}u;", lane_rows());
  line("  let fetch_row = index / {0}u;\n  let fetch_column = index % {0}u;", lanes_a_row());
  line("  let fetch_put = fetch_row * {}u + fetch_column;", stride());
}

void PackedAttentionWriter::fetch_own(std::uint32_t i, const char* operand, const char* rows, const char* row_length) {
  for_vectors(t_.rows, [&](auto n, auto v, auto row, auto column) {
    line("  let given{}_{}_{} = {}[{} + min(first + fetch_row + {}u, last) * {} + fetch_column + {}u];", i, n, v, operand, rows,
         row, row_length, column);
  });
}

void PackedAttentionWriter::keep_own() {
  if (t_.own_in_registers) return own_to_registers();
  for (std::uint32_t i = 0; i < operands(); ++i) {
    for_vectors(t_.rows, [&](auto n, auto v, auto row, auto column) {
      line("  room[fetch_put + {}u] = given{}_{}_{};", own(i) + row * stride() + column, i, n, v);
    });
  }
}

void PackedAttentionWriter::own_piece_to_room(std::uint32_t piece) {
  for (std::uint32_t i = 0; i < operands(); ++i) {
    for_vectors(t_.rows, [&](auto n, auto v, auto row, auto column) {
      const bool whole = lanes_a_row() <= own_length();
      if (whole && column / own_length() != piece) return;
      if (!whole) line("  if (fetch_column / {}u == {}u) {{", own_length(), piece);
      line("    room[fetch_row * {0}u + fetch_column % {1}u + {2}u] = given{3}_{4}_{5};", own_length() + 1, own_length(),
           (i * t_.rows + row) * (own_length() + 1) + column % own_length(), i, n, v);
      if (!whole) line("  }}");
    });
  }
}

// Each subgroup's rows of the operand that it multiplies, by way of workgroup memory.
void PackedAttentionWriter::own_to_registers() {
  const std::uint32_t put = own_length() + 1, steps = own_length() * 8 / t_.matrix.k;
  const std::string rows = two() ? fmt::format("(half * {}u + score_row)", t_.rows) : "score_row";
  for (std::uint32_t piece = 0; piece < operands(); ++piece) {
    own_piece_to_room(piece);
    line("  workgroupBarrier();");
    for (std::uint32_t m = 0; m < score_rows() / t_.matrix.m; ++m) {
      for (std::uint32_t step = 0; step < steps; ++step) {
        line("  let own{}_{} = subgroupMatrixLoad<Left, row_major>(&room, {} * {}u + {}u, {}u);", m, piece * steps + step, rows,
             put, m * t_.matrix.m * put + step * t_.matrix.k / 8, put);
      }
    }
    line("  workgroupBarrier();");
  }
}

void PackedAttentionWriter::declare_stages() {
  for (std::uint32_t i = 0; i < 2; ++i) {
    for_vectors(t_.columns, [&](auto n, auto v, auto, auto) {
      if (v == 0) line("  var scale{}_{}: f32;", i, n);
      line("  var next{}_{}_{}: vec4<u32>;", i, n, v);
    });
  }
}

void PackedAttentionWriter::fetch(std::uint32_t i, const Source& source, const char* token) {
  for_vectors(t_.columns, [&](auto n, auto v, auto row, auto column) {
    if (v == 0) {
      line("    let token{}_{} = min({} + fetch_row + {}u, {} - 1u);", i, n, token, row, source.count);
      if (source.scales.empty()) line("    scale{}_{} = 1.0;", i, n);
      else line("    scale{0}_{1} = {2}[token{0}_{1}];", i, n, source.scales);
    }
    line("    next{0}_{1}_{2} = {3}[{4} + token{0}_{1} * {5} + fetch_column + {6}u];", i, n, v, source.operand, source.rows,
         source.row_length, column);
  });
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

void PackedAttentionWriter::store_stage(std::uint32_t i, const char* token, const char* to) {
  line("    {{\n      let put = fetch_put + {};", to);
  for_vectors(t_.columns, [&](auto n, auto v, auto row, auto column) {
    // Not where the scale is read, which would wait for it there.
    if (v == 0) {
      line("      let factor{0} = select(0.0, scale{1}_{0} * inverse{1}, {2} + fetch_row + {3}u < end);", n, i, token, row);
    }
    // Queries and keys are brought to the largest of their own scales, which makes factors of at most 1.
    line("      room[put + {0}u] = {1}(next{2}_{3}_{4}, factor{3});", stage(i) + row * stride() + column,
         i == 0 ? "scaled" : "scaled_twice", i, n, v);
  });
  line("    }}");
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

void PackedAttentionWriter::scores(const std::string& stage) {
  const std::uint32_t down = score_rows() / t_.matrix.m, across = score_columns() / t_.matrix.n;
  const auto of_half = [&](std::uint32_t size) { return two() ? fmt::format(" + half * {}u", size) : std::string(); };
  line("    let score_stage = score_column * {}u + {};", stride(), stage);
  for (std::uint32_t i = 0; i < down; ++i)
    for (std::uint32_t j = 0; j < across; ++j) line("    var s{}_{} = Result();", i, j);
  steps(dim_, [&](const Step& step) {
    for (std::uint32_t i = 0; i < down; ++i) {
      if (t_.own_in_registers) {
        line("      let a{0} = own{0}_{1};", i, step.value);
      } else {
        line("      let a{} = subgroupMatrixLoad<Left, row_major>(&room, score_row * {}u + {}u + {}{}, {}u);", i, stride(),
             own(0) + i * t_.matrix.m * stride(), step.times(t_.matrix.k / 8), of_half(own(1) - own(0)), stride());
      }
    }
    for (std::uint32_t j = 0; j < across; ++j) {
      line("      let b{} = subgroupMatrixLoad<Right, col_major>(&room, score_stage + {}u + {}, {}u);", j,
           j * t_.matrix.n * stride(), step.times(t_.matrix.k / 8), stride());
      for (std::uint32_t i = 0; i < down; ++i) {
        line("      s{0}_{1} = subgroupMatrixMultiplyAccumulate(a{0}, b{1}, s{0}_{1});", i, j);
      }
    }
  });
}

void PackedAttentionWriter::store_scores() {
  const std::uint32_t down = score_rows() / t_.matrix.m, across = score_columns() / t_.matrix.n;
  line("    let score_tile = score_row * {}u + score_column / 4u{};", score_stride(),
       two() ? fmt::format(" + half * {}u", scores_at(1) - scores_at(0)) : "");
  for (std::uint32_t i = 0; i < down; ++i) {
    for (std::uint32_t j = 0; j < across; ++j) {
      line("    subgroupMatrixStore<row_major>(&room, score_tile + {}u, s{}_{}, {}u);",
           scores_at(0) + i * t_.matrix.m * score_stride() + j * t_.matrix.n / 4, i, j, score_stride());
    }
  }
}

void PackedAttentionWriter::declare_results() {
  for_results([&](auto i, auto j) { line("  var r{}_{} = Result();", i, j); });
}

std::string PackedAttentionWriter::weight_column(const Step& step) const {
  if (!in_place()) return step.times(t_.matrix.k / 8);
  if (t_.matrix.k == 16) return step.times(4) + " + 1u";
  return step.known ? fmt::format("{}u", step.value * 2 + 1 - step.value % 2) : "step * 2u + 1u - step % 2u";
}

void PackedAttentionWriter::accumulate(const std::string& stage) {
  const std::uint32_t down = result_rows() / t_.matrix.m, across = result_columns() / t_.matrix.n;
  line("    {{\n    let result_weights = result_row * {}u{};", weight_stride(),
       two_results() ? fmt::format(" + half * {}u", scores_at(1) - scores_at(0)) : "");
  line("    let result_stage = result_column / 8u + {};", stage);
  steps(t_.columns, [&](const Step& step) {
    for (std::uint32_t i = 0; i < down; ++i) {
      line("      let a{} = subgroupMatrixLoad<Left, row_major>(&room, result_weights + {}u + {}, {}u);", i,
           weights_at(0) + i * t_.matrix.m * weight_stride(), weight_column(step), weight_stride());
    }
    for (std::uint32_t j = 0; j < across; ++j) {
      line("      let b{} = subgroupMatrixLoad<Right, row_major>(&room, result_stage + {}u + {}, {}u);", j,
           j * t_.matrix.n / 8, step.times(t_.matrix.k * stride()), stride());
      for (std::uint32_t i = 0; i < down; ++i) {
        line("      r{0}_{1} = subgroupMatrixMultiplyAccumulate(a{0}, b{1}, r{0}_{1});", i, j);
      }
    }
  });
  line("    }}");
}

void PackedAttentionWriter::store_strip(std::uint32_t i) {
  for (std::uint32_t j = 0; j < result_columns() / t_.matrix.n; ++j) {
    line("  subgroupMatrixStore<row_major>(&room, strip + {}u, r{}_{}, {}u);", j * t_.matrix.n / 4, i, j, strip_stride());
  }
}

void PackedAttentionWriter::write_results(const char* output, const std::string& row_at, const char* factor) {
  const std::uint32_t across = result_columns() / 4;
  for (std::uint32_t i = 0; i < result_rows() / t_.matrix.m; ++i) {
    line("  workgroupBarrier();");
    store_strip(i);
    line("  workgroupBarrier();");
    line("  for (var i = lane; i < {}u; i += {}u) {{", t_.matrix.m * across, t_.subgroup);
    line("    let row = result_row + {}u + i / {}u;", i * t_.matrix.m, across);
    line("    if (first + row <= last) {{");
    line("      let sums = bitcast<vec4<f32>>(room[strip + i / {0}u * {1}u + i % {0}u]);", across, strip_stride());
    line("      {}[{} + result_column / 4u + i % {}u] = sums * ({});", output, row_at, across, factor);
    line("    }}\n  }}");
  }
}

std::string PackedAttentionWriter::score(std::uint32_t tile, std::uint32_t n) const {
  return fmt::format("bitcast<vec4<f32>>(room[{}u + row * {}u + {} / 4u])", scores_at(tile), score_stride(), column(n));
}

void PackedAttentionWriter::keep_met(const char* token, const char* begin, const char* otherwise) {
  for (std::uint32_t n = 0; n < vectors; ++n) {
    line("      let number{} = {} + {} + vec4<u32>(0u, 1u, 2u, 3u);", n, token, column(n));
    line("      let met{0} = (number{0} >= vec4<u32>({1})) & (number{0} < vec4<u32>(own_end));", n, begin);
    line("      p{0} = select(vec4<f32>({1}), p{0}, met{0});", n, otherwise);
  }
}

void PackedAttentionWriter::store_weights(const char* name, std::uint32_t tile) {
  line("    room[{0}u + row * {1}u + {2}] = eight({3}0, {3}1);", weights_at(tile), weight_stride(),
       in_place() ? "part * 2u + 1u - part % 2u" : "part", name);
}

}  // namespace nibble::detail
