// Sums of long arrays: blocks of 32 terms a lane are summed by themselves, so that the roundings of a sum of n terms grow as
// those of n / 32 + 32.
const BLOCK = 32u;

// The caller's `term(i)` summed over i in [begin, end), by all lanes of the workgroup together.
fn block_sum(lane: u32, begin: u32, end: u32) -> f32 {
  var total = 0.0;
  for (var first = begin; first < end; first += BLOCK * WORKGROUP) {
    var part = 0.0;
    // Compared as distances: sums of indices might pass 2^32.
    for (var k = lane; k < min(BLOCK * WORKGROUP, end - first); k += WORKGROUP) {
      part += term(first + k);
    }
    total += part;
    if (end - first <= BLOCK * WORKGROUP) {
      break;
    }
  }
  return row_sum(lane, total);
}
