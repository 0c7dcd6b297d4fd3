// Four neighbouring columns at once, for rows whose length is a multiple of 4.
const WIDTH = 4u;
alias Wide = vec4<f32>;
alias WideIndex = vec4<u32>;

fn wide_sum(v: Wide) -> f32 {
  return (v.x + v.y) + (v.z + v.w);
}

fn wide_max(v: Wide) -> f32 {
  return max(max(v.x, v.y), max(v.z, v.w));
}

fn wide_bits(v: Wide) -> WideIndex {
  return bitcast<vec4<u32>>(v);
}

fn wide_max_bits(v: WideIndex) -> u32 {
  return max(max(v.x, v.y), max(v.z, v.w));
}

// The columns of wide number i.
fn wide_columns(i: u32) -> WideIndex {
  return vec4(4u * i) + vec4(0u, 1u, 2u, 3u);
}

fn wide_element(v: Wide, i: u32) -> f32 {
  return v[i];
}

fn wide_any(v: vec4<bool>) -> bool {
  return any(v);
}
