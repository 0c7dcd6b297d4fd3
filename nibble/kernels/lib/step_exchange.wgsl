// Values that the workgroups of one dispatch hand to each other, each in a word of its own, which is zero until the value is there.
// So a reader needs no other sign, and words need no order among each other: WGSL's atomics promise none. A value that is zero goes
// as -0. Waiting ends only if the workgroup that is waited for runs; where it does not, patience ends, word TROUBLE_AT says so, and NaN
// stands for what did not come.
@group(0) @binding(1) var<storage, read_write> exchange: array<atomic<u32>>;

const BATCH = 8u;  // words that an invocation has on their way at once
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

fn look(at: u32) -> u32 {
  return atomicLoad(&exchange[params.region + at]);
}

fn in_trouble() -> bool {
  return atomicLoad(&exchange[TROUBLE_AT]) != 0u;
}

// The value of word `at`, which held `seen` a moment ago.
fn take(at: u32, seen: u32) -> f32 {
  var bits = seen;
  for (var i = 0u; bits == 0u && i < patience; i++) {
    bits = look(at);
    if (i % 1024u == 1023u && in_trouble()) {
      patience = 0u;
    }
  }
  if (bits == 0u) {
    patience = 0u;
    atomicStore(&exchange[TROUBLE_AT], 1u);
    bits = 0x7fc00000u;
  }
  return bitcast<f32>(bits);
}

// Words from `source` on into values[place(0)] on.
fn fetch(source: u32, count: u32, invocation: u32) {
  for (var first = invocation; first < count; first += BATCH * WORKGROUP) {
    var seen: array<u32, BATCH>;
    for (var i = 0u; i < BATCH; i++) {
      seen[i] = look(source + min(first + i * WORKGROUP, count - 1u));
    }
    for (var i = 0u; i < BATCH; i++) {
      let k = first + i * WORKGROUP;
      if (k < count) {
        values[place(k)] = take(source + k, seen[i]);
      }
    }
  }
}

// Empties the region of the layer before, for the one after this.
fn empty_other_region(invocation: u32, workgroup: u32) {
  for (var i = workgroup * WORKGROUP + invocation; i < REGION; i += WORKGROUPS * WORKGROUP) {
    atomicStore(&exchange[params.other_region + i], 0u);
  }
}
