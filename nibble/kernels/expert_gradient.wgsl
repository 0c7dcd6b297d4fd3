// Of one expert, over its rows m: G(j, c) += scaling * sum of narrow(m, j) wide(m, c) (expert_product.h). A workgroup computes 16 of j
// by 64 of c, an invocation four of c; 16 rows are staged in workgroup memory at a time.

struct Params {
  rank: u32,
  columns: u32,
  scaling: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> narrow: array<f32>;
@group(0) @binding(2) var<storage, read> wide: array<f32>;
@group(0) @binding(3) var<storage, read> row_begin: array<u32>;
@group(0) @binding(4) var<storage, read> slot_of_row: array<u32>;
@group(0) @binding(5) var<storage, read_write> gradient: array<f32>;

var<workgroup> narrow_tile: array<f32, 256>;
var<workgroup> wide_tile: array<vec4<f32>, 256>;

fn wide_vector(row: u32, column: u32) -> vec4<f32> {
  var source = row;
  if (BY_TOKEN) {
    source = slot_of_row[row] / PER_TOKEN;
  }
  var result = vec4<f32>();
  for (var i = 0u; i < 4u; i++) {
    if (column + i < params.columns) {
      result[i] = wide[source * params.columns + column + i];
    }
  }
  return result;
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>,
        @builtin(local_invocation_index) index: u32) {
  let expert = group.z;
  let first = row_begin[expert];
  let end = row_begin[expert + 1u];
  let j = 16u * group.y + lane.y;
  let column = 64u * group.x + 4u * lane.x;
  let put = 16u * group.y + lane.x;  // what this invocation stages of narrow
  var sum = vec4<f32>();
  for (var begin = first; begin < end; begin += 16u) {
    let row = begin + lane.y;
    var value = 0.0;
    var vector = vec4<f32>();
    if (row < end) {
      if (put < params.rank) {
        value = narrow[row * params.rank + put];
      }
      vector = wide_vector(row, column);
    }
    narrow_tile[index] = value;
    wide_tile[index] = vector;
    workgroupBarrier();
    for (var m = 0u; m < 16u; m++) {
      sum += narrow_tile[16u * m + lane.y] * wide_tile[16u * m + lane.x];
    }
    workgroupBarrier();
  }
  if (j >= params.rank || first == end) {
    return;
  }
  for (var i = 0u; i < 4u; i++) {
    if (column + i < params.columns) {
      let straight = (expert * params.rank + j) * params.columns + column + i;
      let turned = (expert * params.columns + column + i) * params.rank + j;
      gradient[select(straight, turned, TURNED)] += params.scaling * sum[i];
    }
  }
}
