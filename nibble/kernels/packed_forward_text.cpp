#include "nibble/kernels/packed_attention_writer.h"

// The text of the forward pass; packed_attention_text.cpp says how the passes go.
namespace nibble::detail {
namespace {

class ForwardWriter : KeysWriter {
 public:
  ForwardWriter(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim) : KeysWriter(tile, pass, head_dim) {}
  std::string text();

 private:
  void head();
  void softmax();
  void write_rows();
};

// Where a row's maximum has grown too far, the results so far are written, divided by the sum of their weights, and the
// block is done again from zero: accumulators that some path rescales cost more on every path.
std::string ForwardWriter::text() {
  declarations();
  std::uint32_t binding = from_caches() ? 5 : 6;
  for (const char* own : {"read> key_begin: array<u32>", "read> key_end: array<u32>", "read_write> o: array<vec4<u32>>", "read_write> o_scale: array<f32>",
                          "read_write> lse: array<f32>"}) {
    line("@group(0) @binding({}) var<storage, {};", binding++, own);
  }
  line("// What a row's sums are multiplied by, and what was written before.");
  line("var<workgroup> row_factor: array<vec2<f32>, {}>;", t_.rows);
  line("var<workgroup> grown: atomic<u32>;");
  begin("(groups.y - 1u - group.y)");
  head();
  line("  var most = LOWEST;\n  var total = 0.0;\n  var before = 0.0;\n  var factor = 1.0;");
  line("  var key = begin;\n  var written = false;\n  loop {{");
  line("  if (index == 0u) {{\n    atomicStore(&grown, 0u);\n  }}");
  declare_results();
  store_stage(0, "key");
  line("  {{\n    let next = key + {}u;", t_.columns);
  fetch_k("next");
  line("  }}\n  workgroupBarrier();\n  while (key < end) {{\n    let next = key + {}u;", t_.columns);
  scores("0u");
  store_scores();
  line("    workgroupBarrier();");
  store_stage(0, "next");
  store_stage(1, "key");
  line("    if (next < end) {{\n      let after = next + {}u;", t_.columns);
  fetch_k("after");
  fetch_v("next");
  line("    }}");
  softmax();
  line("    if (workgroupUniformLoad(&grown) != 0u) {{\n      break;\n    }}\n    total = total * factor + sum;");
  accumulate(fmt::format("{}u", stage(1)));
  line("    key = next;\n  }}\n  let done = key >= end;");
  write_rows();
  line("  if (done) {{\n    break;\n  }}\n  workgroupBarrier();");
  fetch_k("key");
  fetch_v("key");
  line("  }}\n}}");
  return text_;
}

void ForwardWriter::head() {
  block_of_keys();
  line("  let query = min(first + row, last);\n  let own_begin = key_begin[query];\n  let own_end = key_end[query];");
  declare_stages();
  fetch_k("begin");
  fetch_v("begin");
  fetch_own(0, "qk", "group.x * HEAD", "qk_length");
  largest_of_keys();
  line("  let own_scale = params.scale * LOG2_E * most_k * qk_scale[query];");
  keep_own();
  line("  if (group.x == 0u && part == 0u && first + row <= last) {{\n    o_scale[query] = unit_v;\n  }}");
}

// Values have weights times 1 / unit_v, so the sums over the weights' total are o in units of its scale.
void ForwardWriter::write_rows() {
  line("  var whole = total;");
  for (std::uint32_t i = 1; i < parts(); i *= 2) line("  whole += subgroupShuffleXor(whole, {}u);", i * lane_rows());
  line("  let share = 1.0 / max(whole, 1e-30);\n  if (part == 0u) {{");
  line("    row_factor[row] = vec2<f32>(share / WEIGHT, before * share);\n    if (done && first + row <= last) {{");
  line("      lse[group.x * params.tokens + query] = (most + log2(whole)) / LOG2_E;\n    }}\n  }}");
  line("  let again = written;\n  written = true;\n  before = whole * factor;\n  total *= factor;");
  const std::uint32_t across = result_columns() / 8;
  for (std::uint32_t i = 0; i < result_rows() / t_.matrix.m; ++i) {
    line("  workgroupBarrier();");
    store_strip(i);
    line("  workgroupBarrier();");
    line("  for (var i = lane; i < {}u; i += {}u) {{", t_.matrix.m * across, t_.subgroup);
    line("    let row = result_row + {}u + i / {}u;", i * t_.matrix.m, across);
    line("    if (first + row <= last) {{\n      let sums = strip + i / {0}u * {1}u + i % {0}u * 2u;", across, strip_stride());
    line("      let to = (first + row) * q_length + group.x * HEAD + result_column / 8u + i % {}u;", across);
    line("      let times = row_factor[row];\n      var low = bitcast<vec4<f32>>(room[sums]) * times.x;");
    line("      var high = bitcast<vec4<f32>>(room[sums + 1u]) * times.x;\n      if (again) {{");
    line("        low += vec4<f32>(bitcast<vec4<f16>>(o[to].xy)) * times.y;");
    line("        high += vec4<f32>(bitcast<vec4<f16>>(o[to].zw)) * times.y;\n      }}");
    line("      o[to] = eight(low, high);\n    }}\n  }}");
  }
}

void ForwardWriter::softmax() {
  for (std::uint32_t n = 0; n < vectors; ++n) line("    var p{} = {} * own_scale;", n, score(0, n));
  line("    if (key < whole_begin || next > whole_end) {{");
  keep_met("key", "own_begin", "LOWEST");
  line("    }}\n    var highest = LOWEST;");
  for (std::uint32_t n = 0; n < vectors; ++n) line("    highest = max(highest, largest(p{}));", n);
  for (std::uint32_t i = 1; i < parts(); i *= 2) {
    line("    highest = max(highest, subgroupShuffleXor(highest, {}u));", i * lane_rows());
  }
  // Weights are below 2^10, since the maximum may lag behind by that much; the first has nothing to rescale.
  line("    factor = 1.0;\n    if (highest > most + 10.0) {{\n      factor = exp2(most - highest);");
  line("      if (most > 0.5 * LOWEST) {{\n        atomicStore(&grown, 1u);\n      }}");
  line("      most = highest;\n    }}\n    var sum = 0.0;");
  line("    let base = max(most, 0.5 * LOWEST);");
  for (std::uint32_t n = 0; n < vectors; ++n) {
    line("    p{0} = exp2(p{0} - base);\n    sum += (p{0}.x + p{0}.y) + (p{0}.z + p{0}.w);\n    p{0} *= WEIGHT;", n);
  }
  store_weights("p", 0);
}

}  // namespace

std::string packed_forward_text(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim) { return ForwardWriter(tile, pass, head_dim).text(); }

}  // namespace nibble::detail
