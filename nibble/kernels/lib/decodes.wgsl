// Which of a decoding kernel's workgroups does what: those with the lowest numbers move cargo (carry.wgsl), the next add up rows
// (lora_rows_sum.wgsl), and params.workgroups decode.

// Whether a workgroup decodes, and which piece of the weight. The weight's end comes first: what is written last is in the cache still,
// and products begin with it.
fn decodes(workgroup: u32, lane: u32, piece: ptr<function, u32>) -> bool {
  if (carries(workgroup, lane)) {
    return false;
  }
  var number = workgroup - params.carriers;
  if (adds_rows(number, lane)) {
    return false;
  }
  number -= params.rows.groups;
  if (number >= params.workgroups) {
    return false;
  }
  *piece = params.workgroups - 1u - number;
  return true;
}
