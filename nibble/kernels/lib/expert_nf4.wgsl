// Words of eight codes, as expert_product.wgsl reads them.
alias StoredW = u32;

fn stored_word(i: u32) -> u32 {
  return w[i];
}

fn stored_value(i: u32) -> f32 {
  return 0.0;
}
