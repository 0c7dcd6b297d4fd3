// table[ids[i]] = rows[i] * factor, one workgroup a row of `rows`. The table's binding begins at row first_row and has table_rows
// rows; ids outside of it are left to other dispatches.

struct Params {
  rows: u32,
  columns: u32,
  first_row: u32,
  table_rows: u32,
  factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<Wide>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> table: array<Data>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let id = ids[row];
  if (id < params.first_row || id - params.first_row >= params.table_rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  let first = (id - params.first_row) * wides;
  for (var i = lane; i < wides; i += WORKGROUP) {
    table[first + i] = Data(rows[row * wides + i] * params.factor);
  }
}
