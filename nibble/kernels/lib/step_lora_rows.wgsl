// Rows of B, an invocation each, after the product.
alias OfB = u32;  // nothing is asked for ahead
fn look_ahead_at_b(p: Product, own: Own, subgroup: u32, lane: u32) -> OfB {
  return 0u;
}
fn meet_b(p: Product, own: Own, b: OfB, subgroup: u32, lane: u32) {}

// scaling * B h of row n of a workgroup's.
fn share_of_adapter(p: Product, own: Own, n: u32) -> f32 {
  let at = adapter_row(p, own, n);
  if (!adapted(at.projection)) {
    return 0.0;
  }
  let b = place_of_b(at.projection) + at.row * RANK;
  var sum = 0.0;
  for (var r = 0u; r < RANK; r++) {
    sum = fma(lora[b + r], hidden[at.member * RANK + r], sum);
  }
  return scaling_of(at.projection) * sum;
}
