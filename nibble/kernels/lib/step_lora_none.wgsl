// No adapters: nothing is bound or done.
alias OfB = u32;
fn look_ahead_at_a(projection: u32, members: u32, inputs: u32, first: u32, count: u32, invocation: u32, workgroup: u32) -> vec2<f32> {
  return vec2<f32>();
}
fn add_hidden(projection: u32, members: u32, inputs: u32, first: u32, count: u32, ahead: vec2<f32>, invocation: u32, subgroup: u32,
              lane: u32, workgroup: u32) {}
fn put_hidden(at: u32, projection: u32, members: u32, invocation: u32, workgroup: u32) {}
fn take_hidden(at: u32, projection: u32, members: u32, subgroup: u32, lane: u32) {}
fn look_ahead_at_b(p: Product, own: Own, subgroup: u32, lane: u32) -> OfB {
  return 0u;
}
fn meet_b(p: Product, own: Own, b: OfB, subgroup: u32, lane: u32) {}
fn share_of_adapter(p: Product, own: Own, n: u32) -> f32 {
  return 0.0;
}
