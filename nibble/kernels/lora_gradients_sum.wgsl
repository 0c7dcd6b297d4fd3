// y[n, c] += factor * sum over parts of power[part] * sums[part, block, c, n in block], in the order of the parts: the
// second pass of gradients (lora_matrix.h). Columns c of a block belong to projections in turn, `padded_rank` each, of
// which `rank` count; projection p's gradient begins at targets[p] of y. One invocation an element of a part.

struct Params {
  segments: array<vec4<u32>, 3>,  // first vector of 8 columns, end, first block
  targets: vec4<u32>,             // NONE: that projection has no adapter
  count: u32,                     // elements of a part
  parts: u32,
  powers: u32,                    // where they begin in sums
  narrow: u32,                    // columns c of a block
  width: u32,                     // of them in a segment
  rank: u32,
  padded_rank: u32,
  n_stride: u32,
  c_stride: u32,
  factor: f32,
}

const NONE = 0xffffffffu;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let at = linear_workgroup(group, groups) * 128u + lane;
  if (at >= params.count) {
    return;
  }
  let block = at / (params.narrow * BLOCK);
  let segment = select(0u, 1u, block >= params.segments[1].z) + select(0u, 1u, block >= params.segments[2].z);
  let place = params.segments[segment];
  let n = (block - place.z) * BLOCK + at % BLOCK;
  let c = at / BLOCK % params.narrow;
  let projection = (segment * params.width + c) / params.padded_rank;
  let rank_at = c % params.padded_rank;
  let beyond = n >= (place.y - place.x) * 8u || c >= params.width || rank_at >= params.rank;
  if (beyond || params.targets[projection] == NONE) {
    return;
  }
  var sum = 0.0;
  var part = 0u;
  // Four at a time, so that their loads overlap.
  for (; part + 4u <= params.parts; part += 4u) {
    let i = part * params.count + at;
    let first = sums[i] * sums[params.powers + part];
    let second = sums[i + params.count] * sums[params.powers + part + 1u];
    let third = sums[i + 2u * params.count] * sums[params.powers + part + 2u];
    let fourth = sums[i + 3u * params.count] * sums[params.powers + part + 3u];
    sum = sum + first + second + third + fourth;
  }
  for (; part < params.parts; part++) {
    sum += sums[part * params.count + at] * sums[params.powers + part];
  }
  y[params.targets[projection] + n * params.n_stride + rank_at * params.c_stride] += params.factor * sum;
}
