// The smallest index of an element that is infinite or NaN. A minimum of integers does not depend on the order of its parts.

struct Params {
  count: u32,
  first: u32,  // index of x's first element
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> index: atomic<u32>;
@group(0) @binding(2) var<storage, read> x: array<u32>;

@compute @workgroup_size(1)
fn reset() {
  atomicStore(&index, 0xffffffffu);
}

// CHUNK elements a workgroup.
@compute @workgroup_size(LANES)
fn scan(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let begin = linear_workgroup(group, groups) * CHUNK;
  for (var k = lane; k < CHUNK && begin + k < params.count; k += LANES) {
    if ((x[begin + k] & 0x7f800000u) == 0x7f800000u) {
      atomicMin(&index, params.first + begin + k);
      return;
    }
  }
}
