// The adapters of up to three projections that lie side by side in a weight (nf4_vec.h).
@group(0) @binding(7) var<storage, read> h: array<f32>;
@group(0) @binding(8) var<storage, read> b0: array<f32>;
@group(0) @binding(9) var<storage, read> b1: array<f32>;
@group(0) @binding(10) var<storage, read> b2: array<f32>;

// scaling * h b^T of one output of the weight, those r of the rank for which r % 8 is `part`.
fn share_of_adapters(row: u32, output: u32, part: u32) -> f32 {
  let projection = u32(output >= params.first_end) + u32(output >= params.second_end);
  if (((params.adapted >> projection) & 1u) == 0u) {
    return 0.0;
  }
  let at = row * params.hidden + projection * params.rank;
  let column = (output - select(0u, select(params.first_end, params.second_end, projection == 2u), projection > 0u)) * params.rank;
  var sum = 0.0;
  for (var r = part; r < params.rank; r += 8u) {
    var b = 0.0;
    if (projection == 0u) {
      b = b0[column + r];
    } else if (projection == 1u) {
      b = b1[column + r];
    } else {
      b = b2[column + r];
    }
    sum += h[at + r] * b;
  }
  return select(params.first_scaling, select(params.second_scaling, params.third_scaling, projection == 2u), projection > 0u) * sum;
}
