// h[t, c] = f16(factor * x[t] . a[c]) of few rows (lora_few.h): a workgroup has ROWS rows by COLUMNS columns, its lanes parts of the inner
// dimension. Prelude: WORKGROUP; MOST_SUBGROUPS, of a workgroup; ROWS; COLUMNS, four.

struct Params {
  rows: u32,
  columns: u32,
  vectors: u32,  // of 8 elements, of the inner dimension
  factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> h: array<vec2<u32>>;

const_assert COLUMNS == 4u;

var<workgroup> shares: array<vec4<f32>, MOST_SUBGROUPS * ROWS>;

fn dot_of(left: Eight, right: Eight) -> f32 {
  return dot(left.low, right.low) + dot(left.high, right.high);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32, @builtin(subgroup_id) subgroup: u32,
        @builtin(num_subgroups) subgroups: u32, @builtin(subgroup_invocation_id) lane: u32) {
  let first = group.y * ROWS;
  let column = group.x * COLUMNS;
  var sums: array<vec4<f32>, ROWS>;
  for (var v = index; v < params.vectors; v += WORKGROUP) {
    let a0 = eight_of(a[column * params.vectors + v]);
    let a1 = eight_of(a[(column + 1u) * params.vectors + v]);
    let a2 = eight_of(a[(column + 2u) * params.vectors + v]);
    let a3 = eight_of(a[(column + 3u) * params.vectors + v]);
    for (var r = 0u; r < ROWS; r++) {
      let own = eight_of(x[min(first + r, params.rows - 1u) * params.vectors + v]);
      sums[r] += vec4<f32>(dot_of(own, a0), dot_of(own, a1), dot_of(own, a2), dot_of(own, a3));
    }
  }
  for (var r = 0u; r < ROWS; r++) {
    let sum = subgroupAdd(sums[r]);
    if (lane == 0u) {
      shares[subgroup * ROWS + r] = sum;
    }
  }
  workgroupBarrier();
  if (index < ROWS && first + index < params.rows) {
    var sum: vec4<f32>;
    for (var s = 0u; s < subgroups; s++) {
      sum += shares[s * ROWS + index];
    }
    h[((first + index) * params.columns + column) / 4u] = bitcast<vec2<u32>>(vec4<f16>(sum * params.factor));
  }
}
