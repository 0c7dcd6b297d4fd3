// y[n, c] += factors[p] * sum over parts of power[part] * sums[part, block, c, n in block], in the order of the parts: the
// second pass of gradients (lora_matrix.h), of up to KINDS kinds. Columns c of a block belong to projections in turn,
// `padded_rank` each, of which `rank` count; projection p's gradient begins at targets[p] of y. A workgroup does 128 elements
// of a part: SHARES invocations each add up every SHARES-th part of four of them, in order, then one what these come to.

struct Kind {
  segments: array<vec4<u32>, 3>,  // first vector of 8 columns, end, first block
  targets: vec4<u32>,             // NONE: that projection has no adapter
  factors: vec3<f32>,             // of each projection
  first: u32,                     // where its parts begin in sums
  count: u32,                     // elements of a part, 0 where there is no such kind
  parts: u32,
  powers: u32,                    // where they begin, from `first`
  narrow: u32,                    // columns c of a block
  block: u32,                     // columns n
  width: u32,                     // columns c of a segment
  n_stride: u32,
  c_stride: u32,
}

struct Params {
  kinds: array<Kind, KINDS>,
  rank: u32,
  padded_rank: u32,
}

const NONE = 0xffffffffu;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const VECTORS = 32u;  // of a workgroup
const SHARES = 4u;

var<workgroup> shares: array<vec4<f32>, VECTORS * SHARES>;

// The place of element `at` of a part in y, or NONE, and its projection.
fn place_of(kind: u32, at: u32) -> vec2<u32> {
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
    return vec2<u32>(NONE, 0u);
  }
  let place_in_y = target_first + n * params.kinds[kind].n_stride + rank_at * params.kinds[kind].c_stride;
  return vec2<u32>(place_in_y, projection);
}

@compute @workgroup_size(VECTORS * SHARES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  // Parts are whole workgroups.
  var begin = linear_workgroup(group, groups) * 4u * VECTORS;
  var kind = 0u;
  for (; kind < KINDS && begin >= params.kinds[kind].count; kind++) {
    begin -= params.kinds[kind].count;
  }
  if (kind == KINDS) {
    return;
  }
  let count = params.kinds[kind].count;
  let place = place_of(kind, begin + lane);
  let to = place.x;
  var old = 0.0;
  if (to != NONE) {
    old = y[to];
  }
  let first = (params.kinds[kind].first + begin) / 4u + lane % VECTORS;
  let powers = (params.kinds[kind].first + params.kinds[kind].powers) / 4u;
  let parts = params.kinds[kind].parts;
  let step = count / 4u;
  var sum = vec4<f32>();
  var part = lane / VECTORS;
  // Four at a time, so that their loads overlap.
  for (; part + 3u * SHARES < parts; part += 4u * SHARES) {
    let i = first + part * step;
    let power = part % 4u;
    let sum0 = sums[i] * sums[powers + part / 4u][power];
    let sum1 = sums[i + SHARES * step] * sums[powers + part / 4u + 1u][power];
    let sum2 = sums[i + 2u * SHARES * step] * sums[powers + part / 4u + 2u][power];
    let sum3 = sums[i + 3u * SHARES * step] * sums[powers + part / 4u + 3u][power];
    sum = sum + sum0 + sum1 + sum2 + sum3;
  }
  for (; part < parts; part += SHARES) {
    sum += sums[first + part * step] * sums[powers + part / 4u][part % 4u];
  }
  shares[lane] = sum;
  workgroupBarrier();
  if (to == NONE) {
    return;
  }
  var total = 0.0;
  for (var share = 0u; share < SHARES; share++) {
    total += shares[share * VECTORS + lane / 4u][lane % 4u];
  }
  y[to] = old + params.kinds[kind].factors[place.y] * total;
}
