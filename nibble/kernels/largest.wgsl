// The largest magnitude of x, CHUNK elements a workgroup. Magnitudes are in order as their bits are, and a maximum of integers
// does not depend on the order of its parts.

struct Params {
  count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> largest: atomic<u32>;
@group(0) @binding(2) var<storage, read> x: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let begin = linear_workgroup(group, groups) * CHUNK;
  var found = 0u;
  for (var k = lane; k < CHUNK && begin + k < params.count; k += LANES) {
    found = max(found, x[begin + k] & 0x7fffffffu);
  }
  // Few lanes find more than is there already.
  if (found > atomicLoad(&largest)) {
    atomicMax(&largest, found);
  }
}
