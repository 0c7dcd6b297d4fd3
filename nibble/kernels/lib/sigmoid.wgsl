// 1 / (1 + exp(-x)). exp would overflow for x below -88; there the result is 0 to within 1e-38.
fn sigmoid(x: Wide) -> Wide {
  return Wide(1.0) / (Wide(1.0) + exp(-max(x, Wide(-87.0))));
}
