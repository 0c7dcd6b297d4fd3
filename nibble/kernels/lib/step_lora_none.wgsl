// No adapters: nothing is bound or done.
fn add_hidden(projection: u32, members: u32, inputs: u32, first: u32, count: u32, invocation: u32, subgroup: u32, lane: u32,
              workgroup: u32) {}
fn put_hidden(at: u32, projection: u32, members: u32, factor: f32, invocation: u32, workgroup: u32) {}
fn take_hidden(at: u32, projection: u32, members: u32, invocation: u32) {}
fn share_of_adapter(projection: u32, member: u32, row: u32) -> f32 {
  return 0.0;
}
