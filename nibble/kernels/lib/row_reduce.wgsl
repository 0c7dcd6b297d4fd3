// Reductions over the WORKGROUP (a power of two) lanes of a workgroup in a fixed order; every lane gets the result. To be
// called in uniform control flow.
var<workgroup> lane_words: array<u32, WORKGROUP>;

fn row_sum(lane: u32, value: f32) -> f32 {
  lane_words[lane] = bitcast<u32>(value);
  workgroupBarrier();
  var total = 0.0;
  if (WORKGROUP <= 32u) {
    for (var i = 0u; i < WORKGROUP; i++) {
      total += bitcast<f32>(lane_words[i]);
    }
  } else {
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
      if (lane < half) {
        lane_words[lane] = bitcast<u32>(bitcast<f32>(lane_words[lane]) + bitcast<f32>(lane_words[lane + half]));
      }
      workgroupBarrier();
    }
    total = bitcast<f32>(lane_words[0]);
  }
  workgroupBarrier();  // the words may be written again
  return total;
}

fn row_max(lane: u32, value: u32) -> u32 {
  lane_words[lane] = value;
  workgroupBarrier();
  var largest = 0u;
  if (WORKGROUP <= 32u) {
    for (var i = 0u; i < WORKGROUP; i++) {
      largest = max(largest, lane_words[i]);
    }
  } else {
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
      if (lane < half) {
        lane_words[lane] = max(lane_words[lane], lane_words[lane + half]);
      }
      workgroupBarrier();
    }
    largest = lane_words[0];
  }
  workgroupBarrier();
  return largest;
}
