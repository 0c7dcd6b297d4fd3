// Values that the workgroups of one dispatch hand to each other, each in a word of its own, which is zero until the value is there.
// So a reader needs no other sign, and words need no order among each other: WGSL's atomics promise none. A value that is zero goes
// as -0. Waiting ends only if the workgroup that is waited for runs; where it does not, patience ends, word TROUBLE_AT says so, and NaN
// stands for what did not come.
@group(0) @binding(1) var<storage, read_write> exchange: array<atomic<u32>>;

const TROUBLE_AT = 0u;  // before all regions

var<private> patience: u32;
var<private> layer: u32;  // of those of the dispatch

// A layer's words are its own for a whole token, so that none need be emptied while others are looked at.
fn region() -> u32 {
  return params.region + layer * REGION;
}

fn put(at: u32, value: f32) {
  let bits = bitcast<u32>(value);
  atomicStore(&exchange[region() + at], select(bits, 0x80000000u, bits == 0u));
}

// LOADS_MOVE: compilers take an atomic load out of a loop, so that it would see what was there at first.
fn look(at: u32) -> u32 {
  if (LOADS_MOVE) {
    return atomicOr(&exchange[region() + at], 0u);
  }
  return atomicLoad(&exchange[region() + at]);
}

fn in_trouble() -> bool {
  return atomicLoad(&exchange[TROUBLE_AT]) != 0u;
}

fn look_at_four(at: vec4<u32>) -> vec4<u32> {
  return vec4<u32>(look(at.x), look(at.y), look(at.z), look(at.w));
}
fn look_again(seen: vec4<u32>, at: vec4<u32>) -> vec4<u32> {
  var result = seen;
  if (seen.x == 0u) {
    result.x = look(at.x);
  }
  if (seen.y == 0u) {
    result.y = look(at.y);
  }
  if (seen.z == 0u) {
    result.z = look(at.z);
  }
  if (seen.w == 0u) {
    result.w = look(at.w);
  }
  return result;
}
fn is_missing(seen: vec4<u32>) -> bool {
  return any(seen == vec4<u32>(0u));
}
fn values_of(seen: vec4<u32>) -> vec4<f32> {
  return bitcast<vec4<f32>>(select(seen, vec4<u32>(0x7fc00000u), seen == vec4<u32>(0u)));
}
// Whether to look once more, after `looks` of them.
fn goes_on(looks: u32) -> bool {
  if (looks % 1024u == 1023u && in_trouble()) {
    patience = 0u;
  }
  if (looks >= patience) {
    patience = 0u;
    atomicStore(&exchange[TROUBLE_AT], 1u);
    return false;
  }
  return true;
}

// The values of four words. Those that are not there yet are looked for at once: in turns, each would take its own way to the cache
// that all workgroups share and back.
fn take_four(at: vec4<u32>) -> vec4<f32> {
  var seen = look_at_four(at);
  for (var looks = 0u; is_missing(seen) && goes_on(looks); looks++) {
    seen = look_again(seen, at);
  }
  return values_of(seen);
}

fn take(at: u32) -> f32 {
  return take_four(vec4<u32>(at)).x;
}
