#include "nibble/kernels/attention_matrix_writer.h"

#include "nibble/base/error.h"

// The texts that are written; all go over the blocks of keys, or queries, that the workgroup's rows meet:
//   forward:          S = q k^T; softmax, rescaling earlier results where a row's maximum has grown; o += P v
//   query gradients:  S = q k^T, dP = d_o v^T; dS = P (dP - delta); dq += dS k
//   key gradients:    S = k q^T, dP = v d_o^T; P and dS as above; dv += P d_o, dk += dS q
// Looped rows are brought to one scale, the largest that the workgroup meets, on their way into workgroup memory. Scores go
// through workgroup memory too, where invocations turn them into f16 weights. Gradients have four barriers a block: after it
// is stored, after the scores are, after the weights are, and when the block has served. The forward pass has only those in
// the middle: between them keys of the next block take the place of keys that have served, and values that of the last
// block's, so that each warp goes from products with values to products with keys at once.

namespace nibble::detail {
namespace {

class ForwardWriter : AttentionWriter {
 public:
  ForwardWriter(const AttentionTile& tile, std::uint32_t head_dim) : AttentionWriter(tile, AttentionPass::forward, head_dim) {}
  std::string text();

 private:
  void head();
  void fetch_k(const char* token);
  void fetch_v(const char* token);
  void fetch_blocks(const char* token);
  void softmax();
};

// Where a row's maximum has grown too far, the results so far are written, in units of the new maximum, and the block is
// done again from zero: accumulators that some path rescales cost more on every path.
std::string ForwardWriter::text() {
  declarations();
  line("@group(0) @binding(5) var<storage, read> key_begin: array<u32>;");
  line("@group(0) @binding(6) var<storage, read> key_end: array<u32>;");
  line("@group(0) @binding(7) var<storage, read_write> o: array<vec4<f32>>;");
  line("@group(0) @binding(8) var<storage, read_write> lse_out: array<f32>;");
  line("var<workgroup> row_factor: array<f32, {}>;\nvar<workgroup> grown: atomic<u32>;", t_.rows);
  begin("(groups.x - 1u - group.x)");
  head();
  line("  var key = begin;\n  var again = false;\n  loop {{\n  if (index == 0u) {{\n    atomicStore(&grown, 0u);\n  }}");
  declare_results('o');
  store_stage(0);
  line("  {{\n    let next = key + {}u;", t_.columns);
  fetch_k("next");
  line("  }}\n  workgroupBarrier();\n  while (key < end) {{\n    let next = key + {}u;", t_.columns);
  scores(0);
  line("    workgroupBarrier();");
  store_stage(0);
  store_stage(1);
  line("    if (next < end) {{\n      let after = next + {}u;", t_.columns);
  fetch_k("after");
  fetch_v("next");
  line("    }}");
  softmax();
  line("    if (workgroupUniformLoad(&grown) != 0u) {{\n      break;\n    }}\n    total += sum;");
  accumulate('o', 0, 1);
  line("    key = next;\n  }}\n  let done = key >= end;\n  if (done) {{");
  for (std::uint32_t i = 1; i < parts(); i *= 2) line("    total += subgroupShuffleXor(total, {}u);", i);
  line("    factor = most_v / WEIGHT / total;\n  }}\n  if (part == 0u) {{\n    row_factor[row] = factor;\n    if (done && first + row <= last) {{");
  line("      lse_out[group.y * params.tokens + query] = (most + log2(total)) / LOG2_E;\n    }}\n  }}");
  write_results('o', "o", fmt::format("((first + row) * params.heads + group.y) * {}u", dim_ / 4), "row_factor[row]", "again");
  line("  if (done) {{\n    break;\n  }}\n  again = true;\n  workgroupBarrier();");
  fetch_blocks("key");
  line("  }}\n}}");
  return text_;
}

void ForwardWriter::head() {
  line("  let key_head = group.y / params.group;\n  let query = min(first + row, last);");
  line("  let own_begin = key_begin[query];\n  let own_end = key_end[query];");
  line("  let begin = key_begin[first];\n  let end = key_end[last];");
  line("  let whole_begin = key_begin[last];\n  let whole_end = key_end[first];");
  line("  let k_rows = params.k_at + key_head * params.k_head;\n  let v_rows = params.v_at + key_head * params.v_head;");
  line("  let k_scales = params.k_scales + key_head * params.k_scale_head;");
  line("  let v_scales = params.v_scales + key_head * params.v_scale_head;");
  declare_stages();
  fetch_blocks("begin");
  fetch_own(0, "qk", "params.q_at + group.y * params.q_head", "params.q_row");
  line("  var most_k = TINY;\n  var most_v = TINY;\n  let met = end - begin;");
  find_largest("met", {{"k", "qk_scale[k_scales + begin + at]"}, {"v", "v_scale[v_scales + begin + at]"}});
  line("  let inverse0 = inverse_power(most_k);\n  let inverse1 = inverse_power(most_v);");
  line("  let q_scale = qk_scale[params.q_scales + group.y * params.q_scale_head + query];");
  line("  let own_scale = params.scale * LOG2_E * q_scale * most_k;");
  keep_own(0);
  line("  var most = LOWEST;\n  var total = 0.0;\n  var factor = 1.0;");
}

void ForwardWriter::fetch_k(const char* token) {
  fetch(0, {"qk", "k_rows", "params.k_row", "qk_scale", "k_scales"}, token);
}

void ForwardWriter::fetch_v(const char* token) {
  fetch(1, {"v", "v_rows", "params.v_row", "v_scale", "v_scales"}, token);
}

void ForwardWriter::fetch_blocks(const char* token) {
  fetch_k(token);
  fetch_v(token);
}

void ForwardWriter::softmax() {
  for (std::uint32_t n = 0; n < vectors(); ++n) line("    var p{} = {} * own_scale;", n, score(0, n));
  line("    if (key < whole_begin || next > whole_end) {{");
  for (std::uint32_t n = 0; n < vectors(); ++n) {
    line("      let number{} = key + {} + vec4<u32>(0u, 1u, 2u, 3u);", n, column(n));
    line("      p{0} = select(vec4<f32>(LOWEST), p{0}, (number{0} >= vec4<u32>(own_begin)) & (number{0} < vec4<u32>(own_end)));", n);
  }
  line("    }}\n    var highest = LOWEST;");
  for (std::uint32_t n = 0; n < vectors(); ++n) line("    highest = max(highest, largest(p{}));", n);
  for (std::uint32_t i = 1; i < parts(); i *= 2) line("    highest = max(highest, subgroupShuffleXor(highest, {}u));", i);
  // Weights are below 2^10, since the maximum may lag behind by that much; the first has nothing to rescale.
  line("    factor = 1.0;\n    if (highest > most + 10.0) {{\n      factor = exp2(most - highest);");
  line("      if (most > 0.5 * LOWEST) {{\n        atomicStore(&grown, 1u);\n      }}");
  line("      most = highest;\n    }}\n    total *= factor;\n    var sum = 0.0;");
  line("    let base = max(most, 0.5 * LOWEST);");
  for (std::uint32_t n = 0; n < vectors(); ++n) {
    line("    p{0} = exp2(p{0} - base);\n    sum += (p{0}.x + p{0}.y) + (p{0}.z + p{0}.w);\n    p{0} *= WEIGHT;", n);
  }
  store_weights("p", 0);
}

class GradientWriter : protected AttentionWriter {
 protected:
  using AttentionWriter::AttentionWriter;
  virtual ~GradientWriter() = default;
  virtual void fetch_blocks(const char* token) = 0;
  // The block into workgroup memory, the next one, from `token` on, on its way where there are `more`, and the scores.
  void bring_block(const char* more, const char* token) {
    store_stage(0);
    store_stage(1);
    line("    workgroupBarrier();\n    if ({}) {{", more);
    fetch_blocks(token);
    line("    }}");
    scores(0);
    scores(1);
    line("    workgroupBarrier();");
  }
};

class QueryGradientWriter : GradientWriter {
 public:
  QueryGradientWriter(const AttentionTile& tile, std::uint32_t head_dim)
      : GradientWriter(tile, AttentionPass::query_gradients, head_dim) {}
  std::string text();

 private:
  void head();
  void fetch_blocks(const char* token) override;
  void weights();
};

std::string QueryGradientWriter::text() {
  declarations();
  line("@group(0) @binding(5) var<storage, read> d_o: array<vec4<u32>>;");
  line("@group(0) @binding(6) var<storage, read> d_o_scale: array<f32>;");
  line("@group(0) @binding(7) var<storage, read> lse: array<f32>;\n@group(0) @binding(8) var<storage, read> delta: array<f32>;");
  line("@group(0) @binding(9) var<storage, read> key_begin: array<u32>;");
  line("@group(0) @binding(10) var<storage, read> key_end: array<u32>;");
  line("@group(0) @binding(11) var<storage, read_write> dq: array<vec4<f32>>;");
  line("var<workgroup> row_factor: array<f32, {}>;", t_.rows);
  begin("(groups.x - 1u - group.x)");
  head();
  declare_results('q');
  line("  for (var key = begin; key < end; key += {0}u) {{\n    let next = key + {0}u;", t_.columns);
  bring_block("next < end", "next");
  weights();
  line("    workgroupBarrier();");
  accumulate('q', 0, 0);
  line("    workgroupBarrier();\n  }}");
  write_results('q', "dq", fmt::format("(group.y * params.tokens + first + row) * {}u", dim_ / 4), "row_factor[row]");
  line("}}");
  return text_;
}

void QueryGradientWriter::head() {
  line("  let key_head = group.y / params.group;\n  let query = min(first + row, last);");
  line("  let own_begin = key_begin[query];\n  let own_end = key_end[query];");
  line("  let begin = key_begin[first];\n  let end = key_end[last];");
  line("  let whole_begin = key_begin[last];\n  let whole_end = key_end[first];");
  line("  let k_rows = params.k_at + key_head * params.k_head;\n  let v_rows = params.v_at + key_head * params.v_head;");
  line("  let k_scales = params.k_scales + key_head * params.k_scale_head;");
  line("  let v_scales = params.v_scales + key_head * params.v_scale_head;");
  declare_stages();
  fetch_blocks("begin");
  fetch_own(0, "qk", "params.q_at + group.y * params.q_head", "params.q_row");
  fetch_own(1, "d_o", "params.d_o_at + group.y * params.d_o_head", "params.d_o_row");
  line("  var most_k = TINY;\n  var most_v = TINY;\n  let met = end - begin;");
  find_largest("met", {{"k", "qk_scale[k_scales + begin + at]"}, {"v", "v_scale[v_scales + begin + at]"}});
  line("  let inverse0 = inverse_power(most_k);\n  let inverse1 = inverse_power(most_v);");
  line("  let own_q = params.scale * LOG2_E * most_k * qk_scale[params.q_scales + group.y * params.q_scale_head + query];");
  line("  let own_d_o = most_v * d_o_scale[params.d_o_scales + group.y * params.d_o_scale_head + query];");
  line("  let own_lse = LOG2_E * lse[group.y * params.tokens + query];\n  let own_delta = delta[group.y * params.tokens + query];");
  line("  let own_fit = fit(max(own_d_o * MOST_DOT, abs(own_delta)));");
  line("  let fit_d_o = own_d_o * own_fit;\n  let fit_delta = own_delta * own_fit;");
  line("  if (part == 0u) {{\n    row_factor[row] = params.scale * most_k / own_fit;\n  }}");
  keep_own(0);
  keep_own(1);
}

void QueryGradientWriter::fetch_blocks(const char* token) {
  fetch(0, {"qk", "k_rows", "params.k_row", "qk_scale", "k_scales"}, token);
  fetch(1, {"v", "v_rows", "params.v_row", "v_scale", "v_scales"}, token);
}

void QueryGradientWriter::weights() {
  for (std::uint32_t n = 0; n < vectors(); ++n) {
    line("    var p{} = exp2(min({} * own_q - own_lse, vec4<f32>()));", n, score(0, n));
  }
  line("    if (key < whole_begin || next > whole_end) {{");
  for (std::uint32_t n = 0; n < vectors(); ++n) {
    line("      let number{} = key + {} + vec4<u32>(0u, 1u, 2u, 3u);", n, column(n));
    line("      p{0} = select(vec4<f32>(), p{0}, (number{0} >= vec4<u32>(own_begin)) & (number{0} < vec4<u32>(own_end)));", n);
  }
  line("    }}");
  for (std::uint32_t n = 0; n < vectors(); ++n) line("    p{0} *= {1} * fit_d_o - fit_delta;", n, score(1, n));
  store_weights("p", 0);
}

class KeyGradientWriter : GradientWriter {
 public:
  KeyGradientWriter(const AttentionTile& tile, std::uint32_t head_dim)
      : GradientWriter(tile, AttentionPass::key_gradients, head_dim) {}
  std::string text();

 private:
  void head();
  // The largest scales and delta of the queries that the workgroup meets, and what follows from them.
  void fits();
  void fetch_blocks(const char* token) override;
  void weights();
};

std::string KeyGradientWriter::text() {
  declarations();
  line("@group(0) @binding(5) var<storage, read> d_o: array<vec4<u32>>;");
  line("@group(0) @binding(6) var<storage, read> d_o_scale: array<f32>;");
  line("@group(0) @binding(7) var<storage, read> lse: array<f32>;\n@group(0) @binding(8) var<storage, read> delta: array<f32>;");
  line("@group(0) @binding(9) var<storage, read> query_end: array<u32>;");
  line("@group(0) @binding(10) var<storage, read_write> dk: array<vec4<f32>>;");
  line("@group(0) @binding(11) var<storage, read_write> dv: array<vec4<f32>>;");
  begin("group.x");
  head();
  declare_results('k');
  declare_results('v');
  line("  while (head < end_head) {{");
  line("    var next = query + {}u;\n    var next_head = head;", t_.columns);
  line("    if (next >= end) {{\n      next = begin;\n      next_head++;\n    }}");
  line("    if (index < {0}u) {{\n      room[{1}u + index / 4u][index % 4u] = bitcast<u32>(next_lse * LOG2_E);", t_.columns, numbers_at(0));
  line("      room[{}u + index / 4u][index % 4u] = bitcast<u32>(next_delta * fit_k);\n    }}", numbers_at(1));
  bring_block("next_head < end_head", "next");
  weights();
  line("    workgroupBarrier();");
  accumulate('v', 0, 1);
  accumulate('k', 1, 0);
  line("    workgroupBarrier();\n    query = next;\n    head = next_head;\n  }}");
  const auto row_at = fmt::format(
      "((group.y % params.parts * (groups.y / params.parts) + key_head) * params.tokens + first + row) * {}u", dim_ / 4);
  write_results('k', "dk", row_at, "params.scale * most_q / fit_k");
  write_results('v', "dv", row_at, "most_d_o / 16384.0");
  line("}}");
  return text_;
}

void KeyGradientWriter::head() {
  line("  let key_head = group.y / params.parts;\n  let heads = params.group / params.parts;");
  line("  let first_head = key_head * params.group + group.y % params.parts * heads;\n  let end_head = first_head + heads;");
  line("  let key = min(first + row, last);\n  let own_end = query_end[key];");
  line("  let begin = first;\n  let end = query_end[last];\n  let whole_end = query_end[first];");
  declare_stages();
  line("  var next_lse: f32;\n  var next_delta: f32;\n  var head = first_head;\n  var query = begin;");
  line("  {{\n    let next_head = first_head;");
  fetch_blocks("begin");
  line("  }}");
  fetch_own(0, "qk", "params.k_at + key_head * params.k_head", "params.k_row");
  fetch_own(1, "v", "params.v_at + key_head * params.v_head", "params.v_row");
  fits();
  line("  let own_k = params.scale * LOG2_E * most_q * qk_scale[params.k_scales + key_head * params.k_scale_head + key];");
  line("  let fit_v = most_d_o * fit_k * own_v_scale;");
  keep_own(0);
  keep_own(1);
}

void KeyGradientWriter::fits() {
  line("  let own_v_scale = v_scale[params.v_scales + key_head * params.v_scale_head + key];");
  line("  var most_q = TINY;\n  var most_d_o = TINY;\n  var most_delta = 0.0;");
  line("  let span = end - begin;\n  let met = span * heads;");
  find_largest("met", {{"q", "qk_scale[params.q_scales + (first_head + at / span) * params.q_scale_head + begin + at % span]"},
                       {"d_o", "d_o_scale[params.d_o_scales + (first_head + at / span) * params.d_o_scale_head + begin + at % span]"},
                       {"delta", "abs(delta[(first_head + at / span) * params.tokens + begin + at % span])"}});
  line("  let most_own_v = workgroup_max(own_v_scale, subgroup, lane);");
  line("  let inverse0 = inverse_power(most_q);\n  let inverse1 = inverse_power(most_d_o);");
  line("  let fit_k = fit(max(most_d_o * most_own_v * MOST_DOT, most_delta));");
}

void KeyGradientWriter::fetch_blocks(const char* token) {
  line("    let q_rows = params.q_at + next_head * params.q_head;\n    let d_o_rows = params.d_o_at + next_head * params.d_o_head;");
  line("    let q_scales = params.q_scales + next_head * params.q_scale_head;");
  line("    let d_o_scales = params.d_o_scales + next_head * params.d_o_scale_head;");
  fetch(0, {"qk", "q_rows", "params.q_row", "qk_scale", "q_scales"}, token);
  fetch(1, {"d_o", "d_o_rows", "params.d_o_row", "d_o_scale", "d_o_scales"}, token);
  line("    let at = next_head * params.tokens + min({} + index, params.tokens - 1u);", token);
  line("    next_lse = lse[at];\n    next_delta = delta[at];");
}

void KeyGradientWriter::weights() {
  for (std::uint32_t n = 0; n < vectors(); ++n) {
    line("    var p{} = exp2(min({} * own_k - bitcast<vec4<f32>>(room[{}u + {} / 4u]), vec4<f32>()));", n, score(0, n), numbers_at(0),
         column(n));
  }
  line("    if (query < last || query + {}u > whole_end) {{", t_.columns);
  for (std::uint32_t n = 0; n < vectors(); ++n) {
    line("      let number{} = query + {} + vec4<u32>(0u, 1u, 2u, 3u);", n, column(n));
    line("      p{0} = select(vec4<f32>(), p{0}, (number{0} >= vec4<u32>(key)) & (number{0} < vec4<u32>(own_end)));", n);
  }
  line("    }}");
  for (std::uint32_t n = 0; n < vectors(); ++n) {
    line("    let w{0} = p{0} * ({1} * fit_v - bitcast<vec4<f32>>(room[{2}u + {3} / 4u]));", n, score(1, n), numbers_at(1), column(n));
    line("    p{} *= 16384.0;", n);
  }
  store_weights("p", 0);
  store_weights("w", 1);
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
