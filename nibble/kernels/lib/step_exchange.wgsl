// Values that the workgroups of one dispatch hand to each other, each in a word of its own, which is zero until the value is there.
// So a reader needs no other sign, and words need no order among each other: WGSL's atomics promise none. A value that is zero goes
// as -0. Waiting ends only if the workgroup that is waited for runs; where it does not, patience ends, word TROUBLE_AT says so, and NaN
// stands for what did not come.
@group(0) @binding(1) var<storage, read_write> exchange: array<atomic<u32>>;

// Workgroup memory has a gap after each lane's elements, so that lanes meet different banks.
const GAPS = ELEMENTS + 1u;
var<workgroup> values: array<f32, VALUES>;  // of the exchange, of one sweep of a product
var<private> patience: u32;

fn place(k: u32) -> u32 {
  return k / ELEMENTS * GAPS + k % ELEMENTS;
}

fn put(at: u32, value: f32) {
  let bits = bitcast<u32>(value);
  atomicStore(&exchange[params.region + at], select(bits, 0x80000000u, bits == 0u));
}

// LOADS_MOVE: compilers take an atomic load out of a loop, so that it would see what was there at first.
fn look(at: u32) -> u32 {
  if (LOADS_MOVE) {
    return atomicOr(&exchange[params.region + at], 0u);
  }
  return atomicLoad(&exchange[params.region + at]);
}

fn in_trouble() -> bool {
  return atomicLoad(&exchange[TROUBLE_AT]) != 0u;
}

// The values of four words. Those that are not there yet are looked for at once: in turns, each would take its own way to the cache
// that all workgroups share and back.
fn take_four(at: vec4<u32>) -> vec4<f32> {
  var seen = vec4<u32>(look(at.x), look(at.y), look(at.z), look(at.w));
  for (var i = 0u; i < patience && any(seen == vec4<u32>(0u)); i++) {
    if (seen.x == 0u) {
      seen.x = look(at.x);
    }
    if (seen.y == 0u) {
      seen.y = look(at.y);
    }
    if (seen.z == 0u) {
      seen.z = look(at.z);
    }
    if (seen.w == 0u) {
      seen.w = look(at.w);
    }
    if (i % 1024u == 1023u && in_trouble()) {
      patience = 0u;
    }
  }
  let missing = seen == vec4<u32>(0u);
  if (any(missing)) {
    patience = 0u;
    atomicStore(&exchange[TROUBLE_AT], 1u);
  }
  return bitcast<vec4<f32>>(select(seen, vec4<u32>(0x7fc00000u), missing));
}

fn take(at: u32) -> f32 {
  return take_four(vec4<u32>(at)).x;
}

// Puts `v` into values[place(k)] where k is below `count`, as k.x is.
fn put_values(k: vec4<u32>, count: u32, v: vec4<f32>) {
  values[place(k.x)] = v.x;
  if (k.y < count) {
    values[place(k.y)] = v.y;
  }
  if (k.z < count) {
    values[place(k.z)] = v.z;
  }
  if (k.w < count) {
    values[place(k.w)] = v.w;
  }
}

// Words from `source` on into values[place(0)] on.
fn fetch(source: u32, count: u32, invocation: u32) {
  for (var first = invocation; first < count; first += 4u * WORKGROUP) {
    let k = first + vec4<u32>(0u, 1u, 2u, 3u) * WORKGROUP;
    put_values(k, count, take_four(source + min(k, vec4<u32>(count - 1u))));
  }
}

// Empties the region of the layer before, for the one after this.
fn empty_other_region(invocation: u32, workgroup: u32) {
  for (var i = workgroup * WORKGROUP + invocation; i < REGION; i += WORKGROUPS * WORKGROUP) {
    atomicStore(&exchange[params.other_region + i], 0u);
  }
}
