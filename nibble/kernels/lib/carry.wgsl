// The workgroups with the lowest numbers, which start first, move a piece of cargo (carry.h): rounds of loads, then stores.
// Prelude: CARRIED_VECTORS, WORKGROUP.
@group(0) @binding(4) var<storage, read> cargo: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read_write> unloaded: array<vec4<u32>>;

// Whether the workgroup did.
fn carries(workgroup: u32, lane: u32) -> bool {
  if (workgroup >= params.carriers) {
    return false;
  }
  var at = params.cargo_first + workgroup * (WORKGROUP * CARRIED_VECTORS) + lane;
  for (var round = 0u; round < params.cargo_rounds; round++) {
    var vectors: array<vec4<u32>, CARRIED_VECTORS>;
    for (var i = 0u; i < CARRIED_VECTORS; i++) {
      vectors[i] = cargo[at + i * WORKGROUP];
    }
    for (var i = 0u; i < CARRIED_VECTORS; i++) {
      unloaded[at + i * WORKGROUP] = vectors[i];
    }
    at += params.carriers * (WORKGROUP * CARRIED_VECTORS);
  }
  return true;
}
