// carry.wgsl of a kernel that moves nothing.
fn carries(workgroup: u32, lane: u32) -> bool {
  return false;
}
