// The code book in the lanes of a subgroup, twice, or where these are fewer than 32 in two halves: lookups in registers need
// no barrier.
var<private> low_codes: f32;
var<private> high_codes: f32;

fn prepare_codes(invocation: u32) {
  const HELD = select(8u, 16u, SUBGROUP >= 32u);
  for (var i = 0u; i < HELD; i++) {
    low_codes = select(low_codes, NF4_CODES[i], invocation % HELD == i);
    high_codes = select(high_codes, NF4_CODES[i % 8u + 8u], invocation % HELD == i);
  }
}

fn code(at: u32) -> f32 {
  if (SUBGROUP >= 32u) {
    return subgroupShuffle(low_codes, at);
  }
  return select(subgroupShuffle(low_codes, at & 7u), subgroupShuffle(high_codes, at & 7u), (at & 8u) != 0u);
}
