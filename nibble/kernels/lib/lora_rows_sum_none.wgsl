// lora_rows_sum.wgsl of a kernel that adds up nothing.
fn adds_rows(workgroup: u32, lane: u32) -> bool {
  return false;
}
