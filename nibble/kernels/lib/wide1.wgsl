// What lib/wide4.wgsl declares, for rows of any length: one column at a time.
const WIDTH = 1u;
alias Wide = f32;
alias WideIndex = u32;

fn wide_sum(v: Wide) -> f32 {
  return v;
}

fn wide_max(v: Wide) -> f32 {
  return v;
}

fn wide_bits(v: Wide) -> WideIndex {
  return bitcast<u32>(v);
}

fn wide_max_bits(v: WideIndex) -> u32 {
  return v;
}

fn wide_columns(i: u32) -> WideIndex {
  return i;
}

fn wide_element(v: Wide, i: u32) -> f32 {
  return v;
}

fn wide_any(v: bool) -> bool {
  return v;
}
