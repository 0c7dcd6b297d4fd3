// The scale of the second operand's rows, bound at W_SCALE_BINDING.
@group(0) @binding(W_SCALE_BINDING) var<storage, read> w_scale: array<f32>;

fn w_row_scale(row: u32) -> f32 {
  return w_scale[row];
}
