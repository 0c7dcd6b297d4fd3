// Where attention of few queries leaves its results, whole or, with SPLIT, of a part of the keys (attention_decode_parts.wgsl).
@group(0) @binding(6) var<storage, read_write> o: array<vec4<f32>>;  // SPLIT: weighted sums of parts
@group(0) @binding(7) var<storage, read_write> lse: array<f32>;      // SPLIT: of each part the largest score and the sum of weights

// Vector `column` of a head's result: its weighted sum of values, and the largest score with the sum of weights against it.
fn write_vector(query: u32, head: u32, part: u32, column: u32, sum: vec4<f32>, largest: f32, total: f32) {
  if (SPLIT) {
    let row = part_row(query, part, head);
    o[row * VECTORS + column] = sum;
    if (column == 0u) {
      lse[2u * row] = largest;
      lse[2u * row + 1u] = total;
    }
  } else {
    o[token_row(query, head) + column] = sum / total;
    if (column == 0u) {
      lse[query_entry(query, head)] = largest + log(total);
    }
  }
}
