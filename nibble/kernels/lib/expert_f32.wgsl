// Values as they are, for expert_product.wgsl.
alias StoredW = f32;

fn stored_word(i: u32) -> u32 {
  return 0u;
}

fn stored_value(i: u32) -> f32 {
  return w[i];
}
