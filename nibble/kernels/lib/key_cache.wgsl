// What becomes of keys or values in a cache (key_cache.h).
fn stored(value: vec4<f32>) -> K {
  return K(clamp(value, vec4<f32>(-MOST_KEY), vec4<f32>(MOST_KEY)));
}
