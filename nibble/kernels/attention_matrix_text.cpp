#include "nibble/kernels/attention_matrix_writer.h"

// The texts that are written; all go over the columns that the workgroup's rows meet:
//   forward:          S = q k^T; softmax, rescaling earlier results where a row's maximum has grown; o += P v
//   query gradients:  S = q k^T, dP = d_o v^T; dS = P (dP - delta); dq += dS k
//   key gradients:    S = k q^T, dP = v d_o^T; P and dS as above; dv += P d_o, dk += dS q
// Operands are tiles of 16 x 16 in global memory, in the orientation in which the product reads them. Scores go through
// workgroup memory (`room`), where invocations turn them into f16 weights. Two barriers a block: after the scores are
// stored, and after the weights are; the next scores are stored where no one reads any more.

namespace nibble::detail {
namespace {

class ForwardWriter : AttentionWriter {
 public:
  ForwardWriter(const AttentionTile& tile, std::uint32_t head_dim) : AttentionWriter(tile, AttentionPass::forward, head_dim) {}
  std::string text();

 private:
  // The invocation's part of a row of scores: units part, part + parts() and so on of 8 columns.
  void softmax();
  // Each row of the results times its row_factor.
  void rescale();
  std::uint32_t parts() const { return t_.invocations() / t_.rows; }
};

std::string ForwardWriter::text() {
  declarations();
  line("@group(0) @binding(3) var<storage, read> key_begin: array<u32>;");
  line("@group(0) @binding(4) var<storage, read> key_end: array<u32>;");
  line("@group(0) @binding(5) var<storage, read_write> o: array<vec4<f32>>;");
  line("@group(0) @binding(6) var<storage, read_write> lse_out: array<f32>;");
  line("var<workgroup> row_factor: array<f32, {}>;\nvar<workgroup> grown: atomic<u32>;", t_.rows);
  begin("(groups.x - 1u - group.x)");
  line("  let key_head = group.y / params.group;");
  line("  let row = index / {0}u;\n  let part = index % {0}u;", parts());
  line("  let query = min(first + row, last);");
  line("  let own_begin = key_begin[query];\n  let own_end = key_end[query];");
  line("  let own_scale = params.scale * LOG2_E * number(params.q_scale + group.y * params.padded + query);");
  line("  let left = params.q + group.y * params.padded * {0}u + rows_at;", dim_ / 8);
  line("  let begin = key_begin[first] / {0}u * {0}u;\n  let end = key_end[last];", t_.columns);
  line("  var most_v = 0.0;");
  line("  for (var i = begin / 4u + index; i < (end + 3u) / 4u; i += {}u) {{", t_.invocations());
  line("    most_v = max(most_v, largest(numbers[(params.v_scale + key_head * params.padded) / 4u + i]));\n  }}");
  line("  most_v = max(workgroup_max(most_v, subgroup, lane), 1e-30);");
  line("  // Weights are below 2^8, since the maximum may lag behind by that much.\n  let to_weight = 64.0 / most_v;");
  line("  var most = LOWEST;\n  var total = 0.0;");
  line("  if (index == 0u) {{\n    atomicStore(&grown, 0u);\n  }}");
  declare_results('o');
  line("  for (var key = begin; key < end; key += {}u) {{", t_.columns);
  line("    let block = (key_head * params.padded + key) * {}u;", dim_ / 8);
  line("    let right = params.k + block + columns_at;\n    let values = params.v_turned + block + results_at;");
  scores("left", "right", 0);
  line("    workgroupBarrier();");
  softmax();
  line("    if (workgroupUniformLoad(&grown) != 0u) {{");
  rescale();
  line("    }}");
  accumulate('o', 0, "values");
  line("  }}");
  for (std::uint32_t i = 1; i < parts(); i *= 2) line("  total += subgroupShuffleXor(total, {}u);", i);
  line("  workgroupBarrier();");
  line("  if (part == 0u) {{\n    row_factor[row] = most_v / 64.0 / total;\n    if (first + row <= last) {{");
  line("      lse_out[group.y * params.tokens + query] = (most + log2(total)) / LOG2_E;\n    }}\n  }}");
  write_results('o', "o", fmt::format("((first + row) * params.heads + group.y) * {}u", dim_ / 4), "row_factor[row]");
  line("}}");
  return text_;
}

void ForwardWriter::softmax() {
  const std::uint32_t units = t_.columns / 8 / parts();
  line("    var highest = LOWEST;");
  for (std::uint32_t n = 0; n < 2 * units; ++n) {
    line("    var p{0} = vec4<f32>(LOWEST);\n    {{", n);
    line("      let column = (part + {}u) * 8u + {}u;", n / 2 * parts(), n % 2 * 4);
    line("      let number = key + column + vec4<u32>(0u, 1u, 2u, 3u);");
    line("      let met = (number >= vec4<u32>(own_begin)) & (number < vec4<u32>(own_end));");
    line("      let score = bitcast<vec4<f32>>(room[row * {}u + column / 4u]);", score_stride());
    line("      let k_scale = numbers[(params.k_scale + key_head * params.padded + key + column) / 4u];");
    line("      p{} = select(p{}, score * (own_scale * k_scale), met);\n    }}", n, n);
    line("    highest = max(highest, largest(p{}));", n);
  }
  for (std::uint32_t i = 1; i < parts(); i *= 2) line("    highest = max(highest, subgroupShuffleXor(highest, {}u));", i);
  line("    var factor = 1.0;\n    if (highest > most + 8.0) {{\n      factor = exp2(most - highest);\n      most = highest;");
  line("      atomicStore(&grown, 1u);\n    }}\n    total *= factor;");
  line("    if (part == 0u) {{\n      row_factor[row] = factor;\n    }}");
  for (std::uint32_t n = 0; n < 2 * units; ++n) {
    line("    p{0} = select(vec4<f32>(), exp2(p{0} - most), p{0} > vec4<f32>(0.5 * LOWEST));", n);
    line("    total += (p{0}.x + p{0}.y) + (p{0}.z + p{0}.w);", n);
    line("    p{0} *= to_weight * numbers[(params.v_scale + key_head * params.padded + key + (part + {1}u) * 8u) / 4u + {2}u];", n,
         n / 2 * parts(), n % 2);
  }
  for (std::uint32_t n = 0; n < units; ++n) {
    line("    room[{}u + row * {}u + part + {}u] = eight(p{}, p{});", weights_at(), weight_stride(), n * parts(), 2 * n,
         2 * n + 1);
  }
}

void ForwardWriter::rescale() {
  const std::uint32_t vectors = result_columns() / 4;
  line("    if (index == 0u) {{\n      atomicStore(&grown, 0u);\n    }}");
  for (std::uint32_t i = 0; i < result_rows() / t_.matrix.m; ++i) {
    store_strip('o', i);
    line("  workgroupBarrier();");
    line("  for (var i = lane; i < {}u; i += {}u) {{", t_.matrix.m * vectors, t_.subgroup);
    line("    let at = strip + i / {0}u * {1}u + i % {0}u;", vectors, strip_stride());
    line("    room[at] = bitcast<vec4<u32>>(bitcast<vec4<f32>>(room[at]) * row_factor[result_row + {}u + i / {}u]);",
         i * t_.matrix.m, vectors);
    line("  }}\n  workgroupBarrier();");
    for (std::uint32_t j = 0; j < result_columns() / t_.matrix.n; ++j) {
      line("  o{}_{} = subgroupMatrixLoad<Result, row_major>(&room, strip + {}u, {}u);", i, j, j * t_.matrix.n / 4,
           strip_stride());
    }
    line("  workgroupBarrier();");
  }
}

// In gradients an invocation has a unit of 8 columns of some rows: at_once() lie between them.
class GradientWriter : protected AttentionWriter {
 protected:
  using AttentionWriter::AttentionWriter;
  std::uint32_t units() const { return t_.columns / 8; }
  std::uint32_t at_once() const { return t_.invocations() / units(); }
  std::uint32_t count() const { return t_.rows / at_once(); }
  // `score` and `dot`, vectors of 4 of the invocation's row n.
  void read_scores(std::uint32_t n, std::uint32_t half) {
    line("      let score = bitcast<vec4<f32>>(room[row{} * {}u + unit * 2u + {}u]);", n, score_stride(), half);
    line("      let dot = bitcast<vec4<f32>>(room[{}u + row{} * {}u + unit * 2u + {}u]);", scores_size(), n, score_stride(), half);
  }
};

class QueryGradientWriter : GradientWriter {
 public:
  QueryGradientWriter(const AttentionTile& tile, std::uint32_t head_dim)
      : GradientWriter(tile, AttentionPass::query_gradients, head_dim) {}
  std::string text();

 private:
  void rows();
  void weights();
};

class KeyGradientWriter : GradientWriter {
 public:
  KeyGradientWriter(const AttentionTile& tile, std::uint32_t head_dim)
      : GradientWriter(tile, AttentionPass::key_gradients, head_dim) {}
  std::string text();

 private:
  // The powers of two that bring all weights of this workgroup into f16's range.
  void fits();
  void rows();
  void weights();
};

std::string QueryGradientWriter::text() {
  declarations();
  line("@group(0) @binding(3) var<storage, read> key_begin: array<u32>;");
  line("@group(0) @binding(4) var<storage, read> key_end: array<u32>;");
  line("@group(0) @binding(5) var<storage, read_write> dq: array<vec4<f32>>;");
  line("var<workgroup> row_factor: array<f32, {}>;", t_.rows);
  begin("(groups.x - 1u - group.x)");
  line("  let key_head = group.y / params.group;\n  let queries = group.y * params.padded;\n  let keys = key_head * params.padded;");
  line("  let unit = index % {}u;", units());
  line("  let begin = key_begin[first] / {0}u * {0}u;\n  let end = key_end[last];", t_.columns);
  line("  var most_k = 0.0;\n  var most_kv = 0.0;");
  line("  for (var i = begin / 4u + index; i < (end + 3u) / 4u; i += {}u) {{", t_.invocations());
  line("    let k = numbers[(params.k_scale + keys) / 4u + i];\n    most_k = max(most_k, largest(k));");
  line("    most_kv = max(most_kv, largest(k * numbers[(params.v_scale + keys) / 4u + i]));\n  }}");
  line("  most_k = workgroup_max(most_k, subgroup, lane);\n  most_kv = workgroup_max(most_kv, subgroup, lane);");
  rows();
  line("  let left = params.q + queries * {0}u + rows_at;\n  let left_d_o = params.d_o + queries * {0}u + rows_at;", dim_ / 8);
  declare_results('q');
  line("  for (var key = begin; key < end; key += {}u) {{", t_.columns);
  line("    let block = (keys + key) * {}u;", dim_ / 8);
  line("    let right = params.k + block + columns_at;\n    let right_v = params.v + block + columns_at;");
  line("    let values = params.k_turned + block + results_at;");
  scores("left", "right", 0);
  scores("left_d_o", "right_v", 1);
  columns_numbers("k_scale", "params.k_scale + keys + key");
  columns_numbers("v_scale", "params.v_scale + keys + key");
  line("    let number0 = key + unit * 8u + vec4<u32>(0u, 1u, 2u, 3u);\n    let number1 = number0 + 4u;");
  line("    workgroupBarrier();");
  weights();
  line("    workgroupBarrier();");
  accumulate('q', 0, "values");
  line("  }}");
  write_results('q', "dq", fmt::format("(group.y * params.tokens + first + row) * {}u", dim_ / 4), "row_factor[row]");
  line("}}");
  return text_;
}

void QueryGradientWriter::rows() {
  for (std::uint32_t n = 0; n < count(); ++n) {
    line("  let row{} = index / {}u + {}u;\n  let query{} = min(first + row{}, last);", n, units(), n * at_once(), n, n);
    line("  let begin{0} = key_begin[query{0}];\n  let end{0} = key_end[query{0}];", n);
    line("  let q_scale{0} = params.scale * LOG2_E * number(params.q_scale + queries + query{0});", n);
    line("  let d_o_scale{0} = number(params.d_o_scale + queries + query{0});", n);
    line("  let lse{0} = number(params.lse + queries + query{0});\n  let delta{0} = number(params.delta + queries + query{0});", n);
    line("  let fit{0} = fit(max(d_o_scale{0} * most_kv * MOST_DOT, abs(delta{0}) * most_k));", n);
    line("  if (unit == 0u) {{\n    row_factor[row{0}] = params.scale / fit{0};\n  }}", n);
  }
}

void QueryGradientWriter::weights() {
  for (std::uint32_t n = 0; n < count(); ++n) {
    for (std::uint32_t half = 0; half < 2; ++half) {
      line("    var w{0}_{1}: vec4<f32>;\n    {{", n, half);
      line("      let met = (number{1} >= vec4<u32>(begin{0})) & (number{1} < vec4<u32>(end{0}));", n, half);
      read_scores(n, half);
      line("      let p = select(vec4<f32>(), exp2(min(score * (q_scale{0} * k_scale{1}) - lse{0}, vec4<f32>())), met);", n, half);
      line("      w{0}_{1} = p * (dot * (d_o_scale{0} * v_scale{1}) - delta{0}) * (fit{0} * k_scale{1});\n    }}", n, half);
    }
    line("    room[{}u + row{} * {}u + unit] = eight(w{}_0, w{}_1);", weights_at(), n, weight_stride(), n, n);
  }
}

std::string KeyGradientWriter::text() {
  declarations();
  line("@group(0) @binding(3) var<storage, read> query_end: array<u32>;");
  line("@group(0) @binding(4) var<storage, read_write> dk: array<vec4<f32>>;");
  line("@group(0) @binding(5) var<storage, read_write> dv: array<vec4<f32>>;");
  begin("group.x");
  line("  let key_head = group.y / params.parts;\n  let keys = key_head * params.padded;");
  line("  let heads = params.group / params.parts;");
  line("  let first_head = key_head * params.group + group.y % params.parts * heads;");
  line("  let unit = index % {}u;", units());
  line("  let begin = first / {0}u * {0}u;\n  let end = query_end[last];", t_.columns);
  fits();
  rows();
  line("  let left = params.k + keys * {0}u + rows_at;\n  let left_v = params.v + keys * {0}u + rows_at;", dim_ / 8);
  declare_results('k');
  declare_results('v');
  line("  for (var head = first_head; head < first_head + heads; head++) {{");
  line("  let queries = head * params.padded;");
  line("  for (var query = begin; query < end; query += {}u) {{", t_.columns);
  line("    let block = (queries + query) * {}u;", dim_ / 8);
  line("    let right = params.q + block + columns_at;\n    let right_d_o = params.d_o + block + columns_at;");
  line("    let values = params.q_turned + block + results_at;\n    let values_d_o = params.d_o_turned + block + results_at;");
  scores("left", "right", 0);
  scores("left_v", "right_d_o", 1);
  columns_numbers("q_scale", "params.q_scale + queries + query");
  columns_numbers("d_o_scale", "params.d_o_scale + queries + query");
  columns_numbers("lse", "params.lse + queries + query");
  columns_numbers("delta", "params.delta + queries + query");
  line("    let number0 = query + unit * 8u + vec4<u32>(0u, 1u, 2u, 3u);\n    let number1 = number0 + 4u;");
  line("    workgroupBarrier();");
  weights();
  line("    workgroupBarrier();");
  accumulate('v', 0, "values_d_o");
  accumulate('k', 1, "values");
  line("  }}\n  }}");
  const auto row_at = fmt::format(
      "((group.y % params.parts * (groups.y / params.parts) + key_head) * params.tokens + first + row) * {}u", dim_ / 4);
  write_results('k', "dk", row_at, "params.scale / fit_k");
  write_results('v', "dv", row_at, "1.0 / fit_v");
  line("}}");
  return text_;
}

void KeyGradientWriter::fits() {
  line("  var most_own_v = 0.0;");
  line("  for (var i = 0u; i < {}u; i++) {{", t_.rows / 4);
  line("    most_own_v = max(most_own_v, largest(numbers[(params.v_scale + keys + first) / 4u + i]));\n  }}");
  line("  var most_d_o = 0.0;\n  var bound = 0.0;");
  line("  for (var head = first_head; head < first_head + heads; head++) {{");
  line("    let queries = head * params.padded;");
  line("    for (var i = begin / 4u + index; i < (end + 3u) / 4u; i += {}u) {{", t_.invocations());
  line("      let d_o = numbers[(params.d_o_scale + queries) / 4u + i];\n      most_d_o = max(most_d_o, largest(d_o));");
  line("      let either = max(d_o * (most_own_v * MOST_DOT), abs(numbers[(params.delta + queries) / 4u + i]));");
  line("      bound = max(bound, largest(either * numbers[(params.q_scale + queries) / 4u + i]));\n    }}\n  }}");
  line("  most_d_o = max(workgroup_max(most_d_o, subgroup, lane), 1e-30);");
  line("  let fit_v = 16384.0 / most_d_o;\n  let fit_k = fit(workgroup_max(bound, subgroup, lane));");
}

void KeyGradientWriter::rows() {
  for (std::uint32_t n = 0; n < count(); ++n) {
    line("  let row{} = index / {}u + {}u;\n  let key{} = min(first + row{}, last);", n, units(), n * at_once(), n, n);
    line("  let end{0} = query_end[key{0}];", n);
    line("  let k_scale{0} = params.scale * LOG2_E * number(params.k_scale + keys + key{0});", n);
    line("  let v_scale{0} = number(params.v_scale + keys + key{0});", n);
  }
}

void KeyGradientWriter::weights() {
  for (std::uint32_t n = 0; n < count(); ++n) {
    for (std::uint32_t half = 0; half < 2; ++half) {
      line("    var p{0}_{1}: vec4<f32>;\n    var w{0}_{1}: vec4<f32>;\n    {{", n, half);
      line("      let met = (number{1} >= vec4<u32>(key{0})) & (number{1} < vec4<u32>(end{0}));", n, half);
      read_scores(n, half);
      line("      let p = select(vec4<f32>(), exp2(min(score * (k_scale{0} * q_scale{1}) - lse{1}, vec4<f32>())), met);", n, half);
      line("      p{0}_{1} = p * (fit_v * d_o_scale{1});", n, half);
      line("      w{0}_{1} = p * (dot * (v_scale{0} * d_o_scale{1}) - delta{1}) * (fit_k * q_scale{1});\n    }}", n, half);
    }
    line("    room[{0}u + row{1} * {2}u + unit] = eight(p{1}_0, p{1}_1);", weights_at(), n, weight_stride());
    line("    room[{0}u + row{1} * {2}u + unit] = eight(w{1}_0, w{1}_1);", weights_at() + t_.rows * weight_stride(), n,
         weight_stride());
  }
}

}  // namespace

std::string attention_matrix_text(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim) {
  switch (pass) {
    case AttentionPass::forward: return ForwardWriter(tile, head_dim).text();
    case AttentionPass::query_gradients: return QueryGradientWriter(tile, head_dim).text();
    case AttentionPass::key_gradients: return KeyGradientWriter(tile, head_dim).text();
  }
  return {};
}

}  // namespace nibble::detail
