// rms_dy.wgsl where a product left partial sums of the blocks that were split (product_splits.wgsl, whose `write` this is): the others
// stand in dy. Rows are read by wides of four columns.
@group(0) @binding(DY_AT) var<storage, read> dy: array<Wide>;
@group(0) @binding(SUMS_AT) var<storage, read> sums: array<Wide>;
@group(0) @binding(SUMS_AT + 1u) var<storage, read> sums_scale: array<f32>;

const STANDS_IN_DY = 0xffffffffu;

// Where the first of the sums of a row's wide lies.
fn place_of(row: u32, i: u32) -> u32 {
  let block = vec2<u32>(row / params.sums.block_rows, i / params.sums.block_vectors);
  // The inverse of bands.wgsl.
  let first = block.x / params.sums.band * params.sums.band;
  let band_rows = min(params.sums.band, params.sums.down - first);
  let number = first * params.sums.across + block.y * band_rows + block.x - first;
  if (number < params.sums.whole) {
    return STANDS_IN_DY;
  }
  let in_block = row % params.sums.block_rows * params.sums.block_vectors + i % params.sums.block_vectors;
  return (number - params.sums.whole) * (params.sums.block_rows * params.sums.block_vectors) + in_block;
}

// From one split to the next.
fn split_size() -> u32 {
  return (params.sums.down * params.sums.across - params.sums.whole) * (params.sums.block_rows * params.sums.block_vectors);
}

fn dy_at(row: u32, i: u32, wides: u32) -> Wide {
  let at = place_of(row, i);
  if (at == STANDS_IN_DY) {
    return dy[row * wides + i];
  }
  var total = sums[at];
  for (var split = 1u; split < params.sums.splits; split++) {
    total += sums[split * split_size() + at];
  }
  return total * (params.sums.scale * sums_scale[row]);
}

// A lane's part of the row, to kept_dy: of one split after the other, so that the loads of each are on their way at once.
fn load_dy(lane: u32, row: u32, wides: u32) {
  var places: array<u32, max(KEPT, 1u)>;
  for (var n = 0u; n < KEPT; n++) {
    let i = min(lane + n * WORKGROUP, wides - 1u);
    places[n] = place_of(row, i);
    if (places[n] == STANDS_IN_DY) {
      kept_dy[n] = dy[row * wides + i];
    } else {
      kept_dy[n] = sums[places[n]];
    }
  }
  let size = split_size();
  for (var split = 1u; split < params.sums.splits; split++) {
    for (var n = 0u; n < KEPT; n++) {
      let stands = places[n] == STANDS_IN_DY;
      let more = sums[select(places[n], 0u, stands) + split * size];
      kept_dy[n] = select(kept_dy[n] + more, kept_dy[n], stands);
    }
  }
  let scale = params.sums.scale * sums_scale[row];
  for (var n = 0u; n < KEPT; n++) {
    kept_dy[n] = select(kept_dy[n] * scale, kept_dy[n], places[n] == STANDS_IN_DY);
  }
}
