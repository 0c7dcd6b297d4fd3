// Element i of x from the random words of the counter (i, seed): normal numbers by Box and Muller times `deviation`, or with
// `words` all the 32 bits. CHUNK elements a workgroup.

struct Params {
  count: u32,
  first: u32,  // index of x's first element
  seed: u32,
  deviation: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<Data>;
@group(0) @binding(1) var<storage, read_write> x_words: array<u32>;

fn random_at(i: u32) -> vec4<u32> {
  return random4(vec4(params.first + i, params.seed, 0x66696c6cu, 0u));
}

@compute @workgroup_size(LANES)
fn normal(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) lane: u32) {
  let begin = linear_workgroup(group, groups) * CHUNK;
  for (var k = lane; k < CHUNK && begin + k < params.count; k += LANES) {
    let words = random_at(begin + k);
    // In (0, 1], since the logarithm of 0 is none, and [0, 1).
    let radius = sqrt(-2.0 * log((f32(words.x >> 8u) + 1.0) * 0x1p-24));
    let angle = 6.283185307 * (f32(words.y >> 8u) * 0x1p-24);
    x[begin + k] = Data(radius * cos(angle) * params.deviation);
  }
}

@compute @workgroup_size(LANES)
fn words(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) lane: u32) {
  let begin = linear_workgroup(group, groups) * CHUNK;
  for (var k = lane; k < CHUNK && begin + k < params.count; k += LANES) {
    x_words[begin + k] = random_at(begin + k).x;
  }
}
