// y[c][r] = x[r][c]. A workgroup moves a tile of SIDE x SIDE through workgroup memory, so that both sides are read and written
// along rows. x is bound from row
// first_row on, y from its row first_column on.

struct Params {
  rows: u32,          // of x's binding
  columns: u32,       // the rows of y's binding
  all_rows: u32,      // of x: the length of y's rows
  all_columns: u32,   // of x
  first_row: u32,
  first_column: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// One more column keeps the transposed reads out of one bank.
var<workgroup> tile: array<array<f32, SIDE + 1>, SIDE>;

@compute @workgroup_size(SIDE, LINES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
  let row = group.y * SIDE;
  let column = group.x * SIDE;
  for (var line = lane.y; line < SIDE; line += LINES) {
    if (row + line < params.rows && column + lane.x < params.columns) {
      tile[line][lane.x] = x[(row + line) * params.all_columns + params.first_column + column + lane.x];
    }
  }
  workgroupBarrier();
  for (var line = lane.y; line < SIDE; line += LINES) {
    if (column + line < params.columns && row + lane.x < params.rows) {
      y[(column + line) * params.all_rows + params.first_row + row + lane.x] = tile[lane.x][line];
    }
  }
}
