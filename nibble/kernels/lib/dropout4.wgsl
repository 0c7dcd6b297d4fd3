// Dropout of the elements (row, column .. column + 3): zero with the probability threshold / 2^32, else times keep_scale.
// Whether an element stays depends on seed, stream, its row in the token stream and its column alone.
fn kept(row: u32, column: u32, value: Wide) -> Wide {
  let counter = vec4<u32>(column / 4u, row + params.dropout_first_row, params.dropout_seed, params.dropout_stream);
  let stays = random4(counter) >= vec4<u32>(params.dropout_threshold);
  return select(vec4<f32>(0.0), value * params.dropout_keep_scale, stays);
}
