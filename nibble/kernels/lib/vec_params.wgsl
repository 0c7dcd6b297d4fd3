// What nf4_vec.wgsl and nf4_row.wgsl are told.
struct Params {
  rows: u32,
  outputs: u32,  // of y
  inputs: u32,
  rank: u32,
  first_end: u32,
  second_end: u32,
  adapted: u32,  // a bit for each projection that has an adapter
  eps: f32,
  first_scaling: f32,  // of each projection
  second_scaling: f32,
  third_scaling: f32,
  hidden: u32,  // columns of h
  first_row: u32,  // of nf4_row.wgsl: of x, y, plus and h
}

@group(0) @binding(0) var<uniform> params: Params;
