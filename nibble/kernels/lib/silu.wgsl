// exp would overflow for g below -88; there g / (1 + exp(87)) stands for a result that is nearer to 0 still.
fn silu(g: f32) -> f32 {
  return g / (1.0 + exp(-max(g, -87.0)));
}
