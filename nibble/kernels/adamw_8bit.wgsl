// AdamW by the rule of lib/adamw.wgsl with moments of 8 bits in blocks of 256 elements, a workgroup a block (Dettmers et al.
// 2022): value = map[code] * absmax of its block, which is number params.skipped + block. The weights are updated with the new moments before these are rounded to
// the nearest code, a tie going to the lower one; a second moment above 0 never rounds to 0, lest a first moment be divided
// by epsilon alone later. Four codes a word, the first in the low byte; the last block's words are whole.

@group(0) @binding(2) var<storage, read> maps: array<f32>;  // 256 of the first moment, 256 of the second, both rising
@group(0) @binding(3) var<storage, read> gradients: array<f32>;
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;
@group(0) @binding(5) var<storage, read_write> first_codes: array<u32>;
@group(0) @binding(6) var<storage, read_write> first_absmax: array<f32>;
@group(0) @binding(7) var<storage, read_write> second_codes: array<u32>;
@group(0) @binding(8) var<storage, read_write> second_absmax: array<f32>;

const WORDS = 64u;  // of a block's codes
const OF_FIRST = 0u;
const OF_SECOND = 256u;
const SMALLEST_NORMAL = 1.1754944e-38;

fn decode(codes: u32, map: u32, absmax: f32) -> vec4<f32> {
  let entry = vec4(map) + (vec4(codes, codes >> 8u, codes >> 16u, codes >> 24u) & vec4(255u));
  return absmax * vec4(maps[entry.x], maps[entry.y], maps[entry.z], maps[entry.w]);
}

// The code of the nearest entry to a value that is at most the map's last.
fn nearest(map: u32, value: f32) -> u32 {
  var above = 0u;  // the first entry that is not below the value
  for (var step = 128u; step > 0u; step /= 2u) {
    above += select(0u, step, maps[map + above + step - 1u] < value);
  }
  let below = max(above, 1u) - 1u;
  return select(below, above, above == 0u || maps[map + above] - value < value - maps[map + below]);
}

fn encode(map: u32, values: vec4<f32>, absmax: f32) -> u32 {
  var word = 0u;
  for (var k = 0u; k < 4u; k++) {
    let share = select(values[k] / absmax, 0.0, absmax < SMALLEST_NORMAL);
    let floor = select(0u, 1u, map == OF_SECOND && share > 0.0);
    word |= max(nearest(map, share), floor) << (8u * k);
  }
  return word;
}

fn largest_of(values: vec4<f32>) -> f32 {
  let sizes = abs(values);
  return max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let block = linear_workgroup(group, groups);
  if (!norm_is_finite() || block * 4u * WORDS >= params.count) {
    return;
  }
  let scale = params.skipped + block;
  var m: array<vec4<f32>, WORDS / WORKGROUP>;
  var v: array<vec4<f32>, WORDS / WORKGROUP>;
  var largest_m = 0.0;
  var largest_v = 0.0;
  for (var j = 0u; j < WORDS / WORKGROUP; j++) {
    let word = block * WORDS + j * WORKGROUP + lane;
    let old_m = decode(first_codes[word], OF_FIRST, first_absmax[scale]);
    let old_v = decode(second_codes[word], OF_SECOND, second_absmax[scale]);
    for (var k = 0u; k < 4u; k++) {
      let i = 4u * word + k;
      if (i < params.count) {
        let g = clipped(gradients[i]);
        m[j][k] = next_first_moment(old_m[k], g);
        v[j][k] = next_second_moment(old_v[k], g);
        weights[i] = next_weight(weights[i], m[j][k], v[j][k]);
      }
    }
    largest_m = max(largest_m, largest_of(m[j]));
    largest_v = max(largest_v, largest_of(v[j]));
  }
  // Magnitudes are in order as their bits are.
  let absmax_m = bitcast<f32>(row_max(lane, bitcast<u32>(largest_m)));
  let absmax_v = bitcast<f32>(row_max(lane, bitcast<u32>(largest_v)));
  for (var j = 0u; j < WORDS / WORKGROUP; j++) {
    let word = block * WORDS + j * WORKGROUP + lane;
    first_codes[word] = encode(OF_FIRST, m[j], absmax_m);
    second_codes[word] = encode(OF_SECOND, v[j], absmax_v);
  }
  if (lane == 0u) {
    first_absmax[scale] = absmax_m;
    second_absmax[scale] = absmax_v;
  }
}
