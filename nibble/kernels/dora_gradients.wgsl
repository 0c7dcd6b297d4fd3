// The gradients that DoRA's gains take part in. `b` is db[i] += gain[i / rank] * db_read[i], CHUNK elements a workgroup.
struct Params {
  count: u32,
  rank: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> db_read: array<f32>;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
@group(0) @binding(3) var<storage, read_write> db: array<f32>;

@compute @workgroup_size(LANES)
fn b(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
     @builtin(local_invocation_index) lane: u32) {
  let begin = linear_workgroup(group, groups) * CHUNK;
  for (var k = lane; k < CHUNK && begin + k < params.count; k += LANES) {
    db[begin + k] += gain[(begin + k) / params.rank] * db_read[begin + k];
  }
}
