// Row and column of a product's block, of blocks.x down and blocks.y across. Blocks go down bands of block rows, so that
// those at work together share much of both operands in the cache.
fn block_at(id: u32, blocks: vec2<u32>, band: u32) -> vec2<u32> {
  let number = id / (band * blocks.y);
  let in_band = id % (band * blocks.y);
  let rows = min(band, blocks.x - number * band);
  return vec2<u32>(number * band + in_band % rows, in_band / rows);
}
