#include "nibble/kernels/lora_matrix_text.h"

#include "nibble/kernels/lora_matrix_writer.h"
#include "nibble/kernels/product_matrix.h"

namespace nibble::detail {

std::string LoraWriter::text() {
  declarations();
  line("@compute @workgroup_size({})", t_.invocations());
  line("fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,");
  line("        @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {{");
  line("  let index = subgroup * {}u + lane;", t_.subgroup);
  line("  let id = group.y * groups.x + group.x;");
  line("  let narrow_block = id % params.narrow_blocks;");
  if (columns())
    place_columns();
  else
    place_rows();
  for_matrices([&](auto i, auto j) { line("  var c{}_{}: Result;", i, j); });
  if (both()) keep_narrow();
  steps();
  finish();
  line("}}");
  return text_;
}

void LoraWriter::steps() {
  line("  {}", fetch("0u"));
  line("  for (var step = 0u; step < steps; step++) {{");
  store();
  line("    workgroupBarrier();");
  line("    if (step + 1u < steps) {{\n      {}\n    }}", fetch("(step + 1u)"));
  multiply();
  if (both()) multiply_rows();
  line("    workgroupBarrier();");
  if (both()) add_shares();
  line("  }}");
}

void LoraWriter::declarations() {
  line("enable f16;\nenable subgroups;\nenable chromium_experimental_subgroup_matrix;");
  text_ += R"(
struct Params {
  segments: array<vec4<u32>, 3>,  // first vector of 8 columns of x, end, first part (or block), dropout's stream
  rows: u32,
  x_stride: u32,                  // vectors
  w_stride: u32,
  width: u32,                     // columns of the narrow operand that belong to a segment
  narrow_blocks: u32,
  blocks: u32,                    // of x
  parts: u32,
  length: u32,                    // of a part: vectors, or rows
  part_size: u32,                 // elements of sums
  powers: u32,                    // where those of parts begin in it
  rows_at: u32,                   // where `backward` puts the sums of `up`
  padded_rows: u32,
  seed: u32,
  first_row: u32,
  threshold: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> sums: array<f32>;
)";
  if (columns()) {
    line("@group(0) @binding(4) var<storage, read> x_scale: array<f32>;");
    line("@group(0) @binding(5) var<storage, read> w_scale: array<f32>;");
    if (both()) line("@group(0) @binding(6) var<storage, read> b: array<vec4<u32>>;");
    line("var<workgroup> largest: array<f32, {}>;", t_.subgroups);
    text_ += R"(
fn times(value: vec4<u32>, factor: f32) -> vec4<u32> {
  let low = vec4<f32>(bitcast<vec4<f16>>(value.xy)) * factor;
  let high = vec4<f32>(bitcast<vec4<f16>>(value.zw)) * factor;
  return vec4<u32>(bitcast<vec2<u32>>(vec4<f16>(low)), bitcast<vec2<u32>>(vec4<f16>(high)));
}
)";
  }
  line("var<workgroup> tiles: array<vec4<u32>, {}>;", tiles());
  if (both()) line("var<workgroup> shares: array<f32, {}>;", shares());
  line("alias Left = subgroup_matrix_left<f16, {}, {}>;", t_.matrix.k, t_.matrix.m);
  line("alias Right = subgroup_matrix_right<f16, {}, {}>;", t_.matrix.n, t_.matrix.k);
  line("alias Result = subgroup_matrix_result<f32, {}, {}>;", t_.matrix.n, t_.matrix.m);
  if (!o_.dropout) return;
  text_ += random_;
  text_ += R"(
fn pair(first: bool, second: bool) -> u32 {
  return select(0u, 0xffffu, first) | select(0u, 0xffff0000u, second);
}
// What dropout keeps of 8 columns, before it is divided by the share that stays.
fn kept(value: vec4<u32>, row: u32, column: u32, stream: u32) -> vec4<u32> {
  let at = vec4<u32>(column * 2u, row + params.first_row, params.seed, stream);
  let low = random4(at) >= vec4<u32>(params.threshold);
  let high = random4(at + vec4<u32>(1u, 0u, 0u, 0u)) >= vec4<u32>(params.threshold);
  return value & vec4<u32>(pair(low.x, low.y), pair(low.z, low.w), pair(high.x, high.y), pair(high.z, high.w));
}
)";
}

void LoraWriter::find_segment(const char* of) {
  line("  let segment = select(0u, 1u, {0} >= params.segments[1].z) + select(0u, 1u, {0} >= params.segments[2].z);",
       of);
  line("  let place = params.segments[segment];");
}

void LoraWriter::place_rows() {
  line("  let block = id / params.narrow_blocks % params.blocks;");
  line("  let part = id / params.narrow_blocks / params.blocks;");
  line("  if (part >= params.parts) {{\n    return;\n  }}");
  find_segment("part");
  line("  let begin = place.x + (part - place.z) * params.length;");
  line("  let end = min(begin + params.length, place.y);");
  line("  let steps = (end - begin + {}u) / {}u;", t_.step / lane - 1, t_.step / lane);
  line("  let first = block * {}u;", t_.block);
  line("  let narrow_first = narrow_block * {}u;", o_.narrow);
  for_vectors(wide(), [&](auto i, auto& row, auto&) {
    line("  let xr{} = min(first + {}, params.rows - 1u) * params.x_stride;", i, row);
    line("  var x{}: vec4<u32>;", i);
  });
  for_vectors(narrow(), [&](auto i, auto& row, auto& column) {
    if (o_.pass == LoraPass::down) {
      line("  let wr{} = (segment * params.width + min(narrow_first + {}, params.width - 1u)) * params.w_stride;", i,
           row);
    } else {
      line("  let wr{} = min(narrow_first / 8u + {}, params.width / 8u - 1u);", i, column);
    }
    line("  var w{}: vec4<u32>;", i);
  });
}

void LoraWriter::place_columns() {
  line("  let block = id / params.narrow_blocks % params.blocks;");
  line("  let part = id / params.narrow_blocks / params.blocks;");
  line("  if (part >= params.parts) {{\n    return;\n  }}");
  find_segment("block");
  line("  let begin = part * params.length;");
  line("  let end = min(begin + params.length, params.rows);");
  line("  let steps = (end - begin + {}u) / {}u;", t_.step - 1, t_.step);
  line("  let first = place.x + (block - place.z) * {}u;", t_.block / lane);
  line("  let narrow_first = segment * params.width + narrow_block * {}u;", o_.narrow);
  line("  let narrow_last = segment * params.width / 8u + params.width / 8u - 1u;");
  for_vectors(wide(), [&](auto i, auto&, auto& column) {
    line("  let xc{} = min(first + {}, place.y - 1u);", i, column);
    line("  var x{}: vec4<u32>;", i);
  });
  for_vectors(narrow(), [&](auto i, auto&, auto& column) {
    line("  let wc{} = min(narrow_first / 8u + {}, narrow_last);", i, column);
    line("  var w{0}: vec4<u32>;\n  var f{0}: f32;\n  var g{0}: f32;", i);
  });
  largest_power();
}

// Rows have powers of two as factors. The largest of the part is taken out, as what remains fits the narrow operand's
// f16.
void LoraWriter::largest_power() {
  line("  var most = 0.0;");
  line("  for (var row = begin + index; row < end; row += {}u) {{", 4 * t_.invocations());
  for (std::uint32_t i = 0; i < 4; ++i) line("    let r{} = min(row + {}u, end - 1u);", i, i * t_.invocations());
  line("    let a = max(x_scale[r0] * w_scale[r0], x_scale[r1] * w_scale[r1]);");
  line("    most = max(most, max(a, max(x_scale[r2] * w_scale[r2], x_scale[r3] * w_scale[r3])));\n  }}");
  line("  most = subgroupMax(most);");
  line("  if (lane == 0u) {{\n    largest[subgroup] = most;\n  }}");
  line("  workgroupBarrier();");
  for (std::uint32_t i = 0; i < t_.subgroups; ++i) line("  most = max(most, largest[{}]);", i);
  line("  let inverse = bitcast<f32>((254u << 23u) - (bitcast<u32>(most) & 0x7f800000u));");
  line("  if (block == 0u && narrow_block == 0u && index == 0u) {{\n    sums[params.powers + part] = most;\n  }}");
}

std::string LoraWriter::fetch(const std::string& step) const {
  std::string text = fmt::format("let at = begin + {} * {}u; ", step, columns() ? t_.step : t_.step / lane);
  const auto out = std::back_inserter(text);
  for_vectors(wide(), [&](auto i, auto& row, auto& column) {
    if (columns()) {
      fmt::format_to(out, "x{0} = x[min(at + {1}, params.rows - 1u) * params.x_stride + xc{0}]; ", i, row);
    } else {
      std::string place = fmt::format("at + {}", column);
      if (!o_.whole_steps) place = fmt::format("min({}, end - 1u)", place);
      fmt::format_to(out, "x{0} = x[xr{0} + {1}]; ", i, place);
    }
  });
  for_vectors(narrow(), [&](auto i, auto& row, auto& column) {
    if (columns()) {
      fmt::format_to(out, "let r{} = min(at + {}, params.rows - 1u); ", i, row);
      fmt::format_to(out, "w{0} = w[r{0} * params.w_stride + wc{0}]; f{0} = x_scale[r{0}]; g{0} = w_scale[r{0}]; ", i);
    } else if (o_.pass == LoraPass::down) {
      fmt::format_to(out, "w{0} = w[wr{0} + min(at + {1}, params.w_stride - 1u)]; ", i, column);
    } else {
      fmt::format_to(out, "w{0} = w[min(at * 8u + {1}, place.y * 8u - 1u) * params.w_stride + wr{0}]; ", i, row);
    }
  });
  return text;
}

void LoraWriter::store() {
  line("    let at = begin + step * {}u;", columns() ? t_.step : t_.step / lane);
  for_vectors(wide(), [&](auto i, auto& row, auto& column) {
    std::string value = fmt::format("x{}", i);
    if (!columns() && !o_.whole_steps) value = fmt::format("select(vec4<u32>(), {}, at + {} < end)", value, column);
    if (o_.dropout && columns())
      value = fmt::format("kept({}, at + {}, xc{}, place.w)", value, row, i);
    else if (o_.dropout)
      value = fmt::format("kept({}, first + {}, at + {}, place.w)", value, row, column);
    line("    {}{{ tiles[{} * {}u + {}] = {}; }}", if_own(wide(), i), row, wide().stride(), column, value);
  });
  for_vectors(narrow(), [&](auto i, auto& row, auto& column) {
    std::string value = fmt::format("w{}", i);
    if (columns()) value = fmt::format("times(w{0}, select(0.0, f{0} * g{0} * inverse, at + {1} < end))", i, row);
    line("    {}{{ tiles[{}u + {} * {}u + {}] = {}; }}", if_own(narrow(), i), narrow().base, row, narrow().stride(),
         column, value);
  });
}

std::uint32_t lora_memory(const LoraTile& tile, const LoraText& text) { return LoraWriter(tile, text, {}).memory(); }

// Found on an H100. The software adapter takes seconds to compile more than a few matrices.
std::optional<LoraTile> lora_tile(const gpu::AdapterInfo& info, LoraPass pass) {
  const auto product = default_matrix_tile(info);
  if (!product) return std::nullopt;
  LoraTile tile{product->matrix, product->subgroup, 4, 64, 64, 64};
  if (pass == LoraPass::gradients) tile.block = 128, tile.step = 32;
  if (pass == LoraPass::backward) tile.block = 512, tile.step = 16, tile.most_narrow = 16;
  if (info.type == gpu::AdapterType::software) {
    tile = {product->matrix, product->subgroup, pass == LoraPass::backward ? 2u : 1u, 32, 16, 16};
  }
  const auto& [m, n, k] = tile.matrix;
  const bool fits = 16 % m == 0 && 16 % n == 0 && 16 % k == 0 && tile.subgroup <= 32 &&
                    lora_memory(tile, {.pass = pass, .narrow = tile.most_narrow}) <= info.limits.workgroup_storage;
  return fits ? std::optional(tile) : std::nullopt;
}

std::string lora_matrix_text(const LoraTile& tile, const LoraText& text, std::string_view random) {
  return LoraWriter(tile, text, random).text();
}

}  // namespace nibble::detail
