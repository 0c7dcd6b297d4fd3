// Rows read in vectors of four elements; they begin at multiples of four.
const WIDTH = 4u;
alias Wide = vec4<f32>;
alias StoredX = vec4<ElementX>;
alias StoredW = vec4<ElementW>;

// c + a . b in the order of the elements.
fn dot_add(a: Wide, b: Wide, c: f32) -> f32 {
  return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}
