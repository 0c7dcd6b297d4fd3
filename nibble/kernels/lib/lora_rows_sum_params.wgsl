// Part of a kernel's params, as `rows`: what lora_rows_sum.wgsl adds up.
struct RowsSum {
  starts: vec4<u32>,  // first part of each segment, and the end of the last
  count: u32,         // vectors of 8 of h
  row_vectors: u32,   // of a row of h
  width: u32,
  padded_width: u32,  // of a row of sums
  padded_rows: u32,
  factor: f32,
  groups: u32,        // workgroups
}
