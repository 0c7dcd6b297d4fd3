// The power of two of an operand's row (operand.h), from the row's largest magnitude as bits: as integers, magnitudes are
// ordered as their values, infinity after them and NaN last.
struct RowScale {
  up: f32,    // data = value * up, which brings the largest to [2^13, 2^14)
  down: f32,  // value = data * down
}

const MAGNITUDE = 0x7fffffffu;

fn row_scale(largest: u32) -> RowScale {
  if (largest == 0u) {
    return RowScale(1.0, 0.0);
  }
  // Rows with infinity or NaN, which shall be seen, stay as they are.
  var exponent = 127u;
  if (largest < 0x7f800000u) {
    // Below 2^-113 the inverse would be subnormal; such rows stay under the top of the range.
    exponent = min(267u - (largest >> 23u), 253u);
  }
  return RowScale(bitcast<f32>(exponent << 23u), bitcast<f32>((254u - exponent) << 23u));
}

// WGSL has no way to write it down.
fn not_a_number() -> f32 {
  var bits = 0x7fc00000u;
  return bitcast<f32>(bits);
}
