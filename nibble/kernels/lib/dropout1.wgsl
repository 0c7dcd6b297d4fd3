// dropout4.wgsl for one element.
fn kept(row: u32, column: u32, value: Wide) -> Wide {
  let counter = vec4<u32>(column / 4u, row + params.dropout_first_row, params.dropout_seed, params.dropout_stream);
  let stays = random4(counter)[column % 4u] >= params.dropout_threshold;
  return select(0.0, value * params.dropout_keep_scale, stays);
}
