// What the kernels of cross entropy share.
const LOWEST = -3.4e38;

// An order of floats as integers, for the maximum over lanes. NaN is above infinity.
fn ordered(value: f32) -> u32 {
  let bits = bitcast<u32>(value);
  return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

fn unordered(word: u32) -> f32 {
  return bitcast<f32>(select(~word, word & 0x7fffffffu, (word >> 31u) == 1u));
}

// What a row's gradient is multiplied by; `others` is the probability of all but its label.
fn slope_factor(factor: f32, gamma: f32, others: f32) -> f32 {
  if (gamma == 0.0) {
    return factor;
  }
  return factor * select(pow(others, gamma), 0.0, others == 0.0);
}
