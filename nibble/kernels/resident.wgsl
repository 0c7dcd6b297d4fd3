// Counts the workgroups that run at one time: each says that it is there, then stays until its patience ends; the first one says how
// many it has seen come, a while before any leaves.
//
// Prelude: WORKGROUP; ROOM, elements of workgroup memory.

struct Params {
  patience: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> arrived: array<atomic<u32>, 1>;
@group(0) @binding(2) var<storage, read_write> seen: array<u32>;

var<workgroup> room: array<u32, ROOM>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) index: u32) {
  var first = false;
  if (index == 0u) {
    first = atomicAdd(&arrived[0], 1u) == 0u;
  }
  // The room is used, or compilers would not take it.
  for (var i = index; i < ROOM; i += WORKGROUP) {
    room[i] = i;
  }
  workgroupBarrier();
  if (index == 0u) {
    for (var i = 0u; i < params.patience; i++) {
      let count = atomicLoad(&arrived[0]) + select(0u, 1u, room[i % ROOM] == 0xffffffffu);
      if (first && i == params.patience / 2u) {
        seen[0] = count;
      }
    }
  }
}
