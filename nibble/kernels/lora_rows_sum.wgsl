// lib/lora_rows_sum.wgsl alone.
struct Params {
  rows: RowsSum,
}
@group(0) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(ROW_VECTORS * SHARES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  _ = adds_rows(linear_workgroup(group, groups), lane);
}
