// Eight f16 values in the 16 bytes that they are read and written in.
struct Eight {
  low: vec4<f32>,
  high: vec4<f32>,
}

fn eight_of(bits: vec4<u32>) -> Eight {
  return Eight(vec4<f32>(bitcast<vec4<f16>>(bits.xy)), vec4<f32>(bitcast<vec4<f16>>(bits.zw)));
}

fn bits_of(values: Eight) -> vec4<u32> {
  return vec4<u32>(bitcast<vec2<u32>>(vec4<f16>(values.low)), bitcast<vec2<u32>>(vec4<f16>(values.high)));
}
