// Of a subgroup's lanes i with the same i / 4 the sum of value i % 4: each exchange adds two lanes' shares of half the values that are
// left.
fn sum_of_four(v: vec4<f32>, lane: u32) -> f32 {
  let upper = (lane & 2u) != 0u;
  let two = select(v.xy, v.zw, upper) + subgroupShuffleXor(select(v.zw, v.xy, upper), 2u);
  let odd = (lane & 1u) != 0u;
  return select(two.x, two.y, odd) + subgroupShuffleXor(select(two.y, two.x, odd), 1u);
}
