// Finite floats in their order as integers, both zeros as one; above them all what is not finite.
const NOT_FINITE = 0x7fffffff;
const LEAST = -0x7fffffff;

fn ordered(bits: u32) -> i32 {
  if ((bits & 0x7f800000u) == 0x7f800000u) {
    return NOT_FINITE;
  }
  let value = bitcast<i32>(select(bits, 0u, bits == 0x80000000u));
  return value ^ ((value >> 31u) & 0x7fffffff);
}

// Of a finite one.
fn bits_of(key: i32) -> u32 {
  return bitcast<u32>(key ^ ((key >> 31u) & 0x7fffffff));
}
