// Rows read element by element; they may have any length.
const WIDTH = 1u;
alias Wide = f32;
alias StoredX = ElementX;
alias StoredW = ElementW;

fn dot_add(a: Wide, b: Wide, c: f32) -> f32 {
  return fma(a, b, c);
}
