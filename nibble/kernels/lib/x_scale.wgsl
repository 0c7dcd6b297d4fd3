// The scale of an operand's rows (Operand::scale), bound at SCALE_BINDING.
@group(0) @binding(SCALE_BINDING) var<storage, read> x_scale: array<f32>;

fn row_scale(row: u32) -> f32 {
  return x_scale[row];
}
