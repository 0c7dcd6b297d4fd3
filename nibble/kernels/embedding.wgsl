// x[t] = table[tokens[t]] * scale, one workgroup a row. The table's binding begins at row first_row and has table_rows rows;
// tokens outside of it are left to other dispatches, and tokens outside the vocabulary give NaN (in the first one).

struct Params {
  rows: u32,
  columns: u32,
  first_row: u32,
  table_rows: u32,
  vocabulary: u32,
  scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<Data>;
@group(0) @binding(3) var<storage, read_write> x: array<Wide>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  let token = tokens[row];
  if (token >= params.vocabulary) {
    if (params.first_row == 0u) {
      for (var i = lane; i < wides; i += WORKGROUP) {
        x[row * wides + i] = Wide(not_a_number());
      }
    }
    return;
  }
  if (token < params.first_row || token - params.first_row >= params.table_rows) {
    return;
  }
  let first = (token - params.first_row) * wides;
  for (var i = lane; i < wides; i += WORKGROUP) {
    x[row * wides + i] = Wide(table[first + i]) * params.scale;
  }
}
