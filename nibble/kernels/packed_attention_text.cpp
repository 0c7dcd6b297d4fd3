#include "nibble/kernels/packed_attention_writer.h"

#include "nibble/base/error.h"

// The texts that are written; all go over the blocks of keys, or queries, that the workgroup's rows meet:
//   forward:          S = q k^T; softmax, rescaling earlier results where a row's maximum has grown; o += P v
//   query gradients:  S = q k^T, dP = d_o v^T; dS = P (dP - delta); dq += dS k
//   key gradients:    S = k q^T, dP = v d_o^T; P and dS as above; dv += P d_o, dk += dS q
// Looped rows are brought to one scale, the largest that the workgroup meets, on their way into workgroup memory. Scores go
// through workgroup memory too, where invocations turn them into f16 weights. Each block has a barrier after its scores are
// stored and one after its weights are. Between them the next block takes the place of one that has served: in the forward
// pass keys that of keys, and values that of the last block's; gradients keep what has yet to be added to results, in a
// second place for the next. So each subgroup goes from a block's results to products of the next at once. Where weights lie
// in the place of scores, in gradients, there is a third barrier between these products and where they are stored.

namespace nibble::detail {
namespace {

class QueryGradientWriter : KeysWriter {
 public:
  QueryGradientWriter(const AttentionTile& tile, std::uint32_t head_dim)
      : KeysWriter(tile, AttentionPass::query_gradients, head_dim) {}
  std::string text();

 private:
  void head();
  // The row's o . d_o and the largest of d_o, also for the gradients of keys.
  void own_numbers();
  void weights();
};

std::string QueryGradientWriter::text() {
  declarations();
  line("@group(0) @binding(6) var<storage, read> d_o: array<vec4<u32>>;");
  line("@group(0) @binding(7) var<storage, read> d_o_scale: array<f32>;");
  line("@group(0) @binding(8) var<storage, read> o: array<vec4<u32>>;");
  line("@group(0) @binding(9) var<storage, read> o_scale: array<f32>;");
  line("@group(0) @binding(10) var<storage, read> lse: array<f32>;");
  line("@group(0) @binding(11) var<storage, read> key_begin: array<u32>;");
  line("@group(0) @binding(12) var<storage, read> key_end: array<u32>;");
  line("@group(0) @binding(13) var<storage, read_write> numbers: array<f32>;");
  line("@group(0) @binding(14) var<storage, read_write> dq: array<vec4<f32>>;");
  line("var<workgroup> row_factor: array<f32, {}>;", t_.rows);
  begin("(groups.y - 1u - group.y)");
  head();
  declare_results();
  store_stage(0, "begin");
  store_stage(1, "begin");
  line("  workgroupBarrier();\n  var now = 0u;  // where the block's keys lie");
  line("  for (var key = begin; key < end; key += {0}u) {{\n    let next = key + {0}u;", t_.columns);
  line("    let other = {}u - now;\n    if (next < end) {{", block());
  fetch_k("next");
  fetch_v("next");
  line("    }}");
  scores(fmt::format("select(now, {}u, half == 1u)", stage(1)));
  line("    workgroupBarrier();");
  store_scores();
  line("    workgroupBarrier();");
  weights();
  store_stage(0, "next", "other");
  store_stage(1, "next");
  line("    workgroupBarrier();");
  accumulate("now");
  line("    now = other;\n  }}");
  write_results("dq", "(first - params.first_row + row) * q_length * 2u + group.x * HEAD * 2u", "row_factor[row]");
  line("}}");
  return text_;
}

void QueryGradientWriter::head() {
  block_of_keys();
  line("  let query = min(first + row, last);\n  let own_begin = key_begin[query];\n  let own_end = key_end[query];");
  declare_stages();
  fetch_k("begin");
  fetch_v("begin");
  fetch_own(0, "qk", "group.x * HEAD", "qk_length");
  fetch_own(1, "d_o", "group.x * HEAD", "q_length");
  own_numbers();
  largest_of_keys();
  line("  let own_q = params.scale * LOG2_E * most_k * qk_scale[query];");
  line("  let own_lse = LOG2_E * lse[group.x * params.tokens + query];");
  line("  let own_fit = fit(max(own_d_o * most_v * {}, abs(own_delta)));", dim_);
  line("  let fit_d_o = min(d_o_scale[query] * unit_v * own_fit, 1e30);\n  let fit_delta = own_delta * own_fit;");
  line("  if (part == 0u) {{\n    row_factor[row] = params.scale * most_k / own_fit;\n  }}");
  keep_own();
}

void QueryGradientWriter::own_numbers() {
  line("  var own_delta = 0.0;\n  var own_d_o = 0.0;");
  line("  let own_at = query * q_length + group.x * HEAD + part;");
  for (std::uint32_t i = 0; i < length() / parts(); ++i) {
    line("  let d_o{0} = d_o[own_at + {1}u];\n  let o{0} = o[own_at + {1}u];", i, i * parts());
  }
  for (std::uint32_t i = 0; i < length() / parts(); ++i) {
    for (const char* half : {"xy", "zw"}) {
      line("  let d_o{0}_{1} = vec4<f32>(bitcast<vec4<f16>>(d_o{0}.{1}));", i, half);
      line("  own_delta += dot(d_o{0}_{1}, vec4<f32>(bitcast<vec4<f16>>(o{0}.{1})));", i, half);
      line("  own_d_o = max(own_d_o, largest(abs(d_o{0}_{1})));", i, half);
    }
  }
  for (std::uint32_t i = 1; i < parts(); i *= 2) {
    line("  own_delta += subgroupShuffleXor(own_delta, {}u);", i * lane_rows());
    line("  own_d_o = max(own_d_o, subgroupShuffleXor(own_d_o, {}u));", i * lane_rows());
  }
  line("  own_delta *= d_o_scale[query] * o_scale[query];\n  own_d_o *= d_o_scale[query];");
  line("  if (part == 0u && first + row <= last) {{\n    numbers[group.x * params.tokens + query] = own_delta;");
  line("    numbers[(params.heads + group.x) * params.tokens + query] = own_d_o;\n  }}");
}

void QueryGradientWriter::weights() {
  for (std::uint32_t n = 0; n < vectors; ++n) {
    line("    var p{} = exp2(min({} * own_q - own_lse, vec4<f32>()));", n, score(0, n));
  }
  line("    if (key < whole_begin || next > whole_end) {{");
  keep_met("key", "own_begin", "0.0");
  line("    }}");
  for (std::uint32_t n = 0; n < vectors; ++n) line("    p{0} *= {1} * fit_d_o - fit_delta;", n, score(1, n));
  store_weights("p", 0);
}

class KeyGradientWriter : PackedAttentionWriter {
 public:
  KeyGradientWriter(const AttentionTile& tile, std::uint32_t head_dim)
      : PackedAttentionWriter(tile, AttentionPass::key_gradients, head_dim) {}
  std::string text();

 private:
  void head();
  // The largest scales and numbers of the queries that the workgroup meets, and what follows from them.
  void fits();
  void fetch_queries(const char* head, const char* token);
  // The text's `name` and `name`_head: the block behind that of `token` and `head`; and that block on its way.
  void advance(const char* token, const char* head, const char* name);
  void fetch_after(const char* token, const char* head, const char* name);
  // And to its place `to` in workgroup memory.
  void store_queries(const char* token, const char* to);
  void weights();
};

std::string KeyGradientWriter::text() {
  declarations();
  line("@group(0) @binding(6) var<storage, read> d_o: array<vec4<u32>>;");
  line("@group(0) @binding(7) var<storage, read> d_o_scale: array<f32>;");
  line("@group(0) @binding(8) var<storage, read> numbers: array<f32>;");
  line("@group(0) @binding(9) var<storage, read> lse: array<f32>;");
  line("@group(0) @binding(10) var<storage, read> query_end: array<u32>;");
  line("@group(0) @binding(11) var<storage, read_write> dkv: array<vec4<f32>>;");
  begin("group.y");
  head();
  declare_results();
  line("  var now = 0u;  // where the block lies");
  line("  var head = first_head;\n  var query = begin;");
  store_queries("begin", "now");
  line("  {{");
  fetch_after("query", "head", "next");
  line("  }}\n  workgroupBarrier();\n  while (head < end_head) {{\n    let other = {}u - now;", block());
  advance("query", "head", "next");
  scores(fmt::format("now + half * {}u", stage(1)));
  line("    workgroupBarrier();");
  store_scores();
  line("    workgroupBarrier();");
  store_queries("next", "other");
  fetch_after("next", "next_head", "after");
  weights();
  line("    workgroupBarrier();");
  accumulate(fmt::format("now + (1u - half) * {}u", stage(1)));
  line("    query = next;\n    head = next_head;\n    now = other;\n  }}");
  line("  let to = group.x % params.parts * params.tokens;\n  let length = params.key_heads * HEAD * 4u;");
  line("  let head_to = (key_head + (1u - half) * params.key_heads) * HEAD * 2u;");
  line("  let factor = select(unit_d_o / 16384.0, params.scale * most_q / fit_k, half == 1u);");
  write_results("dkv", "(to + first + row) * length + head_to", "factor");
  line("}}");
  return text_;
}

void KeyGradientWriter::head() {
  line("  let key_head = group.x / params.parts;\n  let heads = group_size / params.parts;");
  line("  let first_head = key_head * group_size + group.x % params.parts * heads;\n  let end_head = first_head + heads;");
  line("  let key = min(first + row, last);\n  let own_end = query_end[key];");
  line("  let begin = first;\n  let end = query_end[last];\n  let whole_end = query_end[first];");
  declare_stages();
  line("  var next_lse: f32;\n  var next_delta: f32;");
  fetch_queries("first_head", "begin");
  fetch_own(0, "qk", "q_length + key_head * HEAD", "qk_length");
  fetch_own(1, "qkv", "qk_length + key_head * HEAD", "qkv_length");
  fits();
  line("  let own_k = params.scale * LOG2_E * most_q * qk_scale[key];");
  line("  let fit_v = min(unit_d_o * fit_k * v_scale[key], 1e30) / 16384.0;");
  keep_own();
}

void KeyGradientWriter::fits() {
  line("  var most_q = TINY;\n  var most_d_o = TINY;\n  var most_delta = 0.0;");
  line("  let span = end - begin;\n  let met = span * heads;");
  const char* delta = "abs(numbers[(first_head + at / span) * params.tokens + begin + at % span])";
  const char* d_o = "numbers[(params.heads + first_head + at / span) * params.tokens + begin + at % span]";
  find_largest("met", {{"d_o", d_o}, {"delta", delta}});
  find_largest("span", {{"q", "qk_scale[begin + at]"}});
  line("  let most_own_v = workgroup_max(v_most[key], subgroup, lane);\n  let unit_d_o = unit_of(most_d_o);");
  line("  let inverse0 = inverse_power(most_q);\n  let inverse1 = inverse_power(unit_d_o);");
  line("  let fit_k = fit(max(most_d_o * most_own_v * {}, most_delta));", dim_);
}

void KeyGradientWriter::fetch_queries(const char* head, const char* token) {
  line("  {{\n    let head_at = {} * HEAD;", head);
  fetch(0, {"qk", "head_at", "qk_length", "qk_scale"}, token);
  fetch(1, {"d_o", "head_at", "q_length", "d_o_scale"}, token);
  line("    let at = {} * params.tokens + min({} + index, params.tokens - 1u);", head, token);
  line("    next_lse = lse[at];\n    next_delta = numbers[at];\n  }}");
}

// The block of queries behind `token` of `head`: the head's next, or the next head's first.
void KeyGradientWriter::advance(const char* token, const char* head, const char* name) {
  line("    var {} = {} + {}u;\n    var {}_head = {};", name, token, t_.columns, name, head);
  line("    if ({0} >= end) {{\n      {0} = begin;\n      {0}_head++;\n    }}", name);
}

void KeyGradientWriter::fetch_after(const char* token, const char* head, const char* name) {
  advance(token, head, name);
  line("    if ({}_head < end_head) {{", name);
  fetch_queries(fmt::format("{}_head", name).c_str(), name);
  line("    }}");
}

// Weights are 2^14 times as large, which brings probabilities to f16's range.
void KeyGradientWriter::store_queries(const char* token, const char* to) {
  line("    if (index < {}u) {{\n      let at = {} + index / 4u;", t_.columns, to);
  line("      room[at + {}u][index % 4u] = bitcast<u32>(next_lse * LOG2_E - 14.0);", numbers_at(0));
  line("      room[at + {}u][index % 4u] = bitcast<u32>(next_delta * (fit_k / 16384.0));\n    }}", numbers_at(1));
  store_stage(0, token, to);
  store_stage(1, token, to);
}

void KeyGradientWriter::weights() {
  for (std::uint32_t n = 0; n < vectors; ++n) {
    line("    let lse{} = bitcast<vec4<f32>>(room[now + {}u + {} / 4u]);", n, numbers_at(0), column(n));
    line("    var p{0} = exp2(min({1} * own_k - lse{0}, vec4<f32>(14.0)));", n, score(0, n));
  }
  line("    if (query < last || query + {}u > whole_end) {{", t_.columns);
  keep_met("query", "key", "0.0");
  line("    }}");
  for (std::uint32_t n = 0; n < vectors; ++n) {
    line("    let delta{} = bitcast<vec4<f32>>(room[now + {}u + {} / 4u]);", n, numbers_at(1), column(n));
    line("    let w{0} = p{0} * ({1} * fit_v - delta{0});", n, score(1, n));
  }
  store_weights("p", 0);
  store_weights("w", 1);
}

}  // namespace

std::string packed_attention_text(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim) {
  switch (pass) {
    case AttentionPass::forward:
    case AttentionPass::forward_from_caches: return packed_forward_text(tile, pass, head_dim);
    case AttentionPass::query_gradients: return QueryGradientWriter(tile, head_dim).text();
    case AttentionPass::key_gradients: return KeyGradientWriter(tile, head_dim).text();
  }
  return {};
}

}  // namespace nibble::detail
