// Reductions over the WORKGROUP (a power of two) lanes of a workgroup in a fixed order; every lane gets the result. To be
// called in uniform control flow. In large workgroups some lanes reduce a share each, then all lanes what these come to: two
// barriers, where halving again and again takes one each time.
const SHARES_OF_ROW = 16u;

var<workgroup> lane_words: array<u32, WORKGROUP>;
var<workgroup> share_words: array<u32, SHARES_OF_ROW>;

fn row_sum(lane: u32, value: f32) -> f32 {
  lane_words[lane] = bitcast<u32>(value);
  workgroupBarrier();
  var total = 0.0;
  if (WORKGROUP <= 32u) {
    for (var i = 0u; i < WORKGROUP; i++) {
      total += bitcast<f32>(lane_words[i]);
    }
    workgroupBarrier();  // the words may be written again
    return total;
  }
  if (lane < SHARES_OF_ROW) {
    var sum = 0.0;
    for (var i = lane; i < WORKGROUP; i += SHARES_OF_ROW) {
      sum += bitcast<f32>(lane_words[i]);
    }
    share_words[lane] = bitcast<u32>(sum);
  }
  workgroupBarrier();
  for (var i = 0u; i < SHARES_OF_ROW; i++) {
    total += bitcast<f32>(share_words[i]);
  }
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
    workgroupBarrier();
    return largest;
  }
  if (lane < SHARES_OF_ROW) {
    var share = 0u;
    for (var i = lane; i < WORKGROUP; i += SHARES_OF_ROW) {
      share = max(share, lane_words[i]);
    }
    share_words[lane] = share;
  }
  workgroupBarrier();
  for (var i = 0u; i < SHARES_OF_ROW; i++) {
    largest = max(largest, share_words[i]);
  }
  return largest;
}
