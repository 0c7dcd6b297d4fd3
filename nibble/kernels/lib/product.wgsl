// What the tiled products share (product_tiled.cpp).
struct Params {
  rows: u32,
  outputs: u32,
  inputs: u32,
  stride: u32,  // length of the rows that a slice of columns is taken from or written to
  first: u32,   // where that slice begins in them
  share: u32,   // product_tn: rows that one part sums
  scale: f32,
  dropout_seed: u32,
  dropout_stream: u32,
  dropout_first_row: u32,   // of the operand in the token stream
  dropout_threshold: u32,
  dropout_keep_scale: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
