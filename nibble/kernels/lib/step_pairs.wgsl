// Products of a lane in f16. The two elements of a byte are looked up at once, in a table of which each lane has a copy in its own bank of
// workgroup memory. Inputs are scaled by a power of two that brings the subgroup's largest to [2^10, 2^11), so that no sum of sixteen
// is beyond f16's range.
//
// Indexed by byte and lane: of a place in one long array compilers make an instruction more for each lookup.
var<workgroup> pairs: array<array<vec2<f16>, SUBGROUP>, 256>;

struct Lane {
  x: array<vec4<f16>, 4>,
  scale: f32,  // the inverse of the inputs' scale
}
fn lane_of(inputs: Inputs) -> Lane {
  let a = max(max(abs(inputs[0]), abs(inputs[1])), max(abs(inputs[2]), abs(inputs[3])));
  let largest = bitcast<u32>(subgroupMax(max(max(a.x, a.y), max(a.z, a.w))));
  let exponent = clamp(largest >> 23u, 11u, 254u);
  let up = bitcast<f32>((264u - exponent) << 23u);
  return Lane(array<vec4<f16>, 4>(vec4<f16>(inputs[0] * up), vec4<f16>(inputs[1] * up), vec4<f16>(inputs[2] * up), vec4<f16>(inputs[3] * up)),
              bitcast<f32>((exponent - 10u) << 23u));
}

// Before a barrier.
fn prepare_products(index: u32, lane: u32) {
  prepare_codes(lane);
  for (var first = 0u; first < 256u; first += SUBGROUPS) {
    let byte = first + index / SUBGROUP;
    let pair = vec2<f32>(code((byte >> 4u) & 15u), code(byte & 15u));
    if (byte < 256u) {
      pairs[byte][lane] = vec2<f16>(pair);
    }
  }
}

fn pair(word: u32, byte: u32, lane: u32) -> vec2<f16> {
  return pairs[extractBits(word, 8u * byte, 8u)][lane];
}

fn product_of(words: vec2<u32>, x: Lane, lane: u32) -> f32 {
  var sum = pair(words.x, 0u, lane) * x.x[0].xy;
  sum = fma(pair(words.x, 1u, lane), x.x[0].zw, sum);
  sum = fma(pair(words.x, 2u, lane), x.x[1].xy, sum);
  sum = fma(pair(words.x, 3u, lane), x.x[1].zw, sum);
  sum = fma(pair(words.y, 0u, lane), x.x[2].xy, sum);
  sum = fma(pair(words.y, 1u, lane), x.x[2].zw, sum);
  sum = fma(pair(words.y, 2u, lane), x.x[3].xy, sum);
  sum = fma(pair(words.y, 3u, lane), x.x[3].zw, sum);
  return f32(sum.x) + f32(sum.y);
}
