// A second operand without scales.
fn w_row_scale(row: u32) -> f32 {
  return 1.0;
}
