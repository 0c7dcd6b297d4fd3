// exp would overflow for g below -88; there the result is 0 to within 1e-36.
fn silu(g: f32) -> f32 {
  return g / (1.0 + exp(-max(g, -87.0)));
}
