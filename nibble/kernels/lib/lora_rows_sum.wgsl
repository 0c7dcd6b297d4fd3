// h[t, c] = f16(factor * sum over a segment's parts of sums[part, t, c]): the second pass of the products of rows
// (lora_matrix.h). `width` columns of h belong to each segment; without parts they are zero. SHARES invocations do 8 columns of
// a row: each adds up every SHARES-th part, in order, and the first of them what these come to. The first of a kernel's workgroups
// do that, of ROW_VECTORS * SHARES invocations. Prelude: SHARES, PARTS_AT_ONCE, SUMS_AT and H_AT, which are bindings.
@group(0) @binding(SUMS_AT) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(H_AT) var<storage, read_write> h: array<vec4<u32>>;

const ROW_VECTORS = 32u;  // of a workgroup

struct Eight {
  low: vec4<f32>,
  high: vec4<f32>,
}

// One half after the other, so that other workgroups have room beside.
var<workgroup> shares: array<vec4<f32>, ROW_VECTORS * SHARES>;

// What the shares come to, for the first ROW_VECTORS invocations.
fn total_of(own: vec4<f32>, lane: u32) -> vec4<f32> {
  workgroupBarrier();
  shares[lane] = own;
  workgroupBarrier();
  var total = own;
  for (var share = 1u; share < SHARES; share++) {
    total += shares[share * ROW_VECTORS + lane % ROW_VECTORS];
  }
  return total;
}

// Whether the workgroup did.
fn adds_rows(workgroup: u32, lane: u32) -> bool {
  if (workgroup >= params.rows.groups) {
    return false;
  }
  let asked = workgroup * ROW_VECTORS + lane % ROW_VECTORS;
  let at = min(asked, params.rows.count - 1u);
  let row = at / params.rows.row_vectors;
  let column = at % params.rows.row_vectors * 8u;
  let segment = column / params.rows.width;
  let part_size = params.rows.padded_rows * params.rows.padded_width / 4u;
  let source = (row * params.rows.padded_width + column - segment * params.rows.width) / 4u;
  let end = params.rows.starts[segment + 1u];
  var sum = Eight();
  var part = params.rows.starts[segment] + lane / ROW_VECTORS;
  // Several at a time, so that their loads overlap.
  for (; part + (PARTS_AT_ONCE - 1u) * SHARES < end; part += PARTS_AT_ONCE * SHARES) {
    var loaded: array<Eight, PARTS_AT_ONCE>;
    for (var n = 0u; n < PARTS_AT_ONCE; n++) {
      let i = (part + n * SHARES) * part_size + source;
      loaded[n] = Eight(sums[i], sums[i + 1u]);
    }
    for (var n = 0u; n < PARTS_AT_ONCE; n++) {
      sum.low += loaded[n].low;
      sum.high += loaded[n].high;
    }
  }
  for (; part < end; part += SHARES) {
    sum.low += sums[part * part_size + source];
    sum.high += sums[part * part_size + source + 1u];
  }
  let low = total_of(sum.low, lane) * params.rows.factor;
  let high = total_of(sum.high, lane) * params.rows.factor;
  if (lane < ROW_VECTORS && asked < params.rows.count) {
    h[at] = vec4<u32>(bitcast<vec2<u32>>(vec4<f16>(low)), bitcast<vec2<u32>>(vec4<f16>(high)));
  }
  return true;
}
