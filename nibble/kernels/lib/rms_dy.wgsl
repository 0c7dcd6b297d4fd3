// What the backward of rms_norm.wgsl reads as dy.
@group(0) @binding(DY_AT) var<storage, read> dy: array<Wide>;

fn dy_at(row: u32, i: u32, wides: u32) -> Wide {
  return dy[row * wides + i];
}

// A lane's part of the row, to kept_dy.
fn load_dy(lane: u32, row: u32, wides: u32) {
  for (var n = 0u; n < KEPT; n++) {
    kept_dy[n] = dy_at(row, min(lane + n * WORKGROUP, wides - 1u), wides);
  }
}
