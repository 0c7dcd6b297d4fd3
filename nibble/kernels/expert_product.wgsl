// Products of rows with the weights of their experts (expert_product.h). A workgroup computes 64 columns of one tile of rows, an
// invocation ROWS rows, 16 apart, of four columns; x and w are staged in workgroup memory, 16 of the inner dimension at a time.
// The binding of w begins at expert first_expert and has bound_experts of them; tiles of others are left to other dispatches.
// NF4: w is packed codes, with absmax; else f32. BY_TOKEN: x has a row a token of PER_TOKEN slots.
// nt: the inner dimension is K, columns are N; nn: the other way round.

struct Params {
  outputs: u32,  // N
  inputs: u32,   // K
  first_expert: u32,
  bound_experts: u32,
  scaling: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<StoredW>;
@group(0) @binding(3) var<storage, read> absmax: array<f32>;
@group(0) @binding(4) var<storage, read> tiles: array<u32>;
@group(0) @binding(5) var<storage, read> slot_of_row: array<u32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

const TILE = 16u * ROWS;
const STEP = 16u;         // of the inner dimension
const VECTORS = STEP / 4u;
const PITCH = VECTORS + 1u;  // spreads rows over the banks of workgroup memory
var<workgroup> x_tile: array<vec4<f32>, TILE * PITCH>;
var<workgroup> w_tile: array<vec4<f32>, 64u * PITCH>;

struct Tile {
  expert: u32,
  first: u32,
  rows: u32,
}

fn tile_at(i: u32) -> Tile {
  return Tile(tiles[3u * i], tiles[3u * i + 1u], tiles[3u * i + 2u]);
}

fn is_mine(tile: Tile) -> bool {
  return tile.rows > 0u && tile.expert >= params.first_expert && tile.expert - params.first_expert < params.bound_experts;
}

// Four of the inner dimension from `k` on, of x's row for `row` of the tile; zeros beyond either.
fn x_vector(tile: Tile, row: u32, k: u32, length: u32) -> vec4<f32> {
  var result = vec4<f32>();
  if (row >= tile.rows) {
    return result;
  }
  var source = tile.first + row;
  if (BY_TOKEN) {
    source = slot_of_row[source] / PER_TOKEN;
  }
  for (var i = 0u; i < 4u; i++) {
    if (k + i < length) {
      result[i] = x[source * length + k + i];
    }
  }
  return result;
}

fn stage_x(tile: Tile, index: u32, begin: u32, length: u32) {
  for (var i = index; i < TILE * VECTORS; i += 256u) {
    x_tile[i / VECTORS * PITCH + i % VECTORS] = x_vector(tile, i / VECTORS, begin + 4u * (i % VECTORS), length);
  }
}

// Four columns of w's row n from k on; zeros beyond either. `expert` counts from the binding's first.
fn w_vector(expert: u32, n: u32, k: u32) -> vec4<f32> {
  var result = vec4<f32>();
  if (n >= params.outputs || k >= params.inputs) {
    return result;
  }
  let at = (expert * params.outputs + n) * params.inputs + k;
  if (NF4) {
    let word = stored_word(at / 8u);
    return four_codes(select(word, word >> 16u, (at & 4u) != 0u)) * absmax[at / 64u];
  }
  for (var i = 0u; i < 4u; i++) {
    if (k + i < params.inputs) {
      result[i] = stored_value(at + i);
    }
  }
  return result;
}

fn put(tile: Tile, lane: vec3<u32>, i: u32, column: u32, columns: u32, sum: vec4<f32>) {
  let row = lane.y + 16u * i;
  if (row >= tile.rows) {
    return;
  }
  let at = (tile.first + row) * columns + column;
  for (var j = 0u; j < 4u; j++) {
    if (column + j < columns) {
      y[at + j] = select(0.0, y[at + j], ACCUMULATE) + params.scaling * sum[j];
    }
  }
}

@compute @workgroup_size(16, 16)
fn nt(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>,
      @builtin(local_invocation_index) index: u32) {
  load_codes(index);
  let tile = tile_at(group.y);
  if (!is_mine(tile)) {
    return;
  }
  let expert = tile.expert - params.first_expert;
  var sum: array<vec4<f32>, ROWS>;
  for (var begin = 0u; begin < params.inputs; begin += STEP) {
    stage_x(tile, index, begin, params.inputs);
    w_tile[index / VECTORS * PITCH + index % VECTORS] = w_vector(expert, 64u * group.x + index / VECTORS, begin + 4u * (index % VECTORS));
    workgroupBarrier();
    for (var l = 0u; l < VECTORS; l++) {
      var b: array<vec4<f32>, 4>;
      for (var j = 0u; j < 4u; j++) {
        b[j] = w_tile[(4u * lane.x + j) * PITCH + l];
      }
      for (var i = 0u; i < ROWS; i++) {
        let a = x_tile[(lane.y + 16u * i) * PITCH + l];
        sum[i] += vec4<f32>(dot(a, b[0]), dot(a, b[1]), dot(a, b[2]), dot(a, b[3]));
      }
    }
    workgroupBarrier();
  }
  for (var i = 0u; i < ROWS; i++) {
    put(tile, lane, i, 64u * group.x + 4u * lane.x, params.outputs, sum[i]);
  }
}

@compute @workgroup_size(16, 16)
fn nn(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>,
      @builtin(local_invocation_index) index: u32) {
  load_codes(index);
  let tile = tile_at(group.y);
  if (!is_mine(tile)) {
    return;
  }
  let expert = tile.expert - params.first_expert;
  var sum: array<vec4<f32>, ROWS>;
  for (var begin = 0u; begin < params.outputs; begin += STEP) {
    stage_x(tile, index, begin, params.outputs);
    w_tile[index] = w_vector(expert, begin + index / 16u, 64u * group.x + 4u * (index % 16u));
    workgroupBarrier();
    for (var l = 0u; l < VECTORS; l++) {
      let first = 64u * l + lane.x;
      let b0 = w_tile[first];
      let b1 = w_tile[first + 16u];
      let b2 = w_tile[first + 32u];
      let b3 = w_tile[first + 48u];
      for (var i = 0u; i < ROWS; i++) {
        let a = x_tile[(lane.y + 16u * i) * PITCH + l];
        sum[i] += a.x * b0 + a.y * b1 + a.z * b2 + a.w * b3;
      }
    }
    workgroupBarrier();
  }
  for (var i = 0u; i < ROWS; i++) {
    put(tile, lane, i, 64u * group.x + 4u * lane.x, params.inputs, sum[i]);
  }
}
