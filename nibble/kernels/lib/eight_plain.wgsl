// Rows of f32 or f16 elements.
@group(0) @binding(3) var<storage, read> w: array<vec4<ElementW>>;

fn eight(row: u32, i: u32) -> Eight {
  let at = row * (params.inputs / 4u) + 2u * i;
  return Eight(vec4<f32>(w[at]), vec4<f32>(w[at + 1u]));
}
