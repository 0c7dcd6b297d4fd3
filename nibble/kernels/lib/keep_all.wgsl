// No dropout.
fn kept(row: u32, column: u32, value: Wide) -> Wide {
  return value;
}
