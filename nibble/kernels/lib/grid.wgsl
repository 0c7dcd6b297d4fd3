// The number of a workgroup in a grid made by gpu::linear_grid.
fn linear_workgroup(group: vec3<u32>, groups: vec3<u32>) -> u32 {
  return group.y * groups.x + group.x;
}
