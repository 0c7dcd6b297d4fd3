// y[n, c] += factor * sum over parts of power[part] * sums[part, block, c, n in block], in the order of the parts: the
// second pass of gradients (lora_matrix.h), of up to two kinds. Columns c of a block belong to projections in turn,
// `padded_rank` each, of which `rank` count; projection p's gradient begins at targets[p] of y. One invocation does an
// element of a part.

struct Kind {
  segments: array<vec4<u32>, 3>,  // first vector of 8 columns, end, first block
  targets: vec4<u32>,             // NONE: that projection has no adapter
  first: u32,                     // where its parts begin in sums
  count: u32,                     // elements of a part, 0 where there is no such kind
  parts: u32,
  powers: u32,                    // where they begin, from `first`
  narrow: u32,                    // columns c of a block
  block: u32,                     // columns n
  width: u32,                     // columns c of a segment
  n_stride: u32,
  c_stride: u32,
  factor: f32,
  unused: vec2<u32>,
}

struct Params {
  kinds: array<Kind, 2>,
  rank: u32,
  padded_rank: u32,
}

const NONE = 0xffffffffu;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  var at = linear_workgroup(group, groups) * 128u + lane;
  let second = at >= params.kinds[0].count;
  at -= select(0u, params.kinds[0].count, second);
  let kind = select(0u, 1u, second);
  let count = params.kinds[kind].count;
  if (at >= count) {
    return;
  }
  let block_columns = params.kinds[kind].block;
  let narrow = params.kinds[kind].narrow;
  let width = params.kinds[kind].width;
  let block = at / (narrow * block_columns);
  let segment = select(0u, 1u, block >= params.kinds[kind].segments[1].z) +
                select(0u, 1u, block >= params.kinds[kind].segments[2].z);
  let place = params.kinds[kind].segments[segment];
  let n = (block - place.z) * block_columns + at % block_columns;
  let c = at / block_columns % narrow;
  let projection = (segment * width + c) / params.padded_rank;
  let rank_at = c % params.padded_rank;
  let beyond = n >= (place.y - place.x) * 8u || c >= width || rank_at >= params.rank;
  let target_first = params.kinds[kind].targets[min(projection, 3u)];
  if (beyond || target_first == NONE) {
    return;
  }
  let first = params.kinds[kind].first;
  let powers = first + params.kinds[kind].powers;
  let parts = params.kinds[kind].parts;
  var sum = 0.0;
  var part = 0u;
  // Four at a time, so that their loads overlap.
  for (; part + 4u <= parts; part += 4u) {
    let i = first + part * count + at;
    let sum0 = sums[i] * sums[powers + part];
    let sum1 = sums[i + count] * sums[powers + part + 1u];
    let sum2 = sums[i + 2u * count] * sums[powers + part + 2u];
    let sum3 = sums[i + 3u * count] * sums[powers + part + 3u];
    sum = sum + sum0 + sum1 + sum2 + sum3;
  }
  for (; part < parts; part++) {
    sum += sums[first + part * count + at] * sums[powers + part];
  }
  y[target_first + n * params.kinds[kind].n_stride + rank_at * params.kinds[kind].c_stride] +=
      params.kinds[kind].factor * sum;
}
