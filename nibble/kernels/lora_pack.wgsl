// packed[row, column] = f16(source[row, column] * factor) for many matrices, whose rows may be longer in `packed`:
// the rest becomes zero. Workgroup (x, y) does LANES vectors of 8 of matrix `first + y` of the table.

struct Matrix {
  source: u32,        // first element
  packed: u32,        // first vector of 8
  rows: u32,
  columns: u32,       // of source
  row_vectors: u32,   // of packed
  factor: f32,
}

struct Params {
  first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<Matrix>;
@group(0) @binding(2) var<storage, read> source: array<f32>;
@group(0) @binding(3) var<storage, read_write> packed: array<vec4<u32>>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let matrix = table[params.first + group.y];
  let at = group.x * LANES + lane;
  let row = at / matrix.row_vectors;
  if (row >= matrix.rows) {
    return;
  }
  let column = at % matrix.row_vectors * 8u;
  let first = matrix.source + row * matrix.columns;
  var values: array<vec4<f32>, 2>;
  for (var i = 0u; i < 8u; i++) {
    if (column + i < matrix.columns) {
      values[i / 4u][i % 4u] = source[first + column + i] * matrix.factor;
    }
  }
  let low = bitcast<vec2<u32>>(vec4<f16>(values[0]));
  packed[matrix.packed + at] = vec4<u32>(low, bitcast<vec2<u32>>(vec4<f16>(values[1])));
}
