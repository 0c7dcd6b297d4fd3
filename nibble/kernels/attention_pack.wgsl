// Writes rows of heads as operands of matrix units (attention_matrix.h): f16, each row times a power of two
// (lib/row_scale.wgsl), by heads. Rows of zeros have scale 0. `gradients` does so with d_o and writes delta = o . d_o.
//
// A workgroup does 16 rows of a head, an invocation 16 values of one. Prelude: HEAD_DIM.

struct Params {
  tokens: u32,
  head_step: u32,   // vectors of 4 from head to head in x and o
  token_step: u32,  // from token to token
  rows: u32,        // where the rows begin, in vectors of 8
  scales: u32,      // where their scales begin
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> operands: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> numbers: array<f32>;
@group(0) @binding(4) var<storage, read> o: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> delta: array<f32>;

const PARTS = HEAD_DIM / 16u;

var<workgroup> largest_of: array<u32, HEAD_DIM>;
var<workgroup> delta_of: array<f32, HEAD_DIM>;

fn bits_of(value: vec4<f32>) -> u32 {
  let bits = bitcast<vec4<u32>>(value) & vec4<u32>(MAGNITUDE);
  return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

fn eight(low: vec4<f32>, high: vec4<f32>) -> vec4<u32> {
  return vec4<u32>(bitcast<vec2<u32>>(vec4<f16>(low)), bitcast<vec2<u32>>(vec4<f16>(high)));
}

// Where the invocation's 16 values begin in x and o; beyond the tokens those of the last.
fn place(group: vec3<u32>, index: u32) -> u32 {
  let token = min(group.x * 16u + index / PARTS, params.tokens - 1u);
  return group.y * params.head_step + token * params.token_step + index % PARTS * 4u;
}

fn pack(group: vec3<u32>, index: u32) {
  let token = group.x * 16u + index / PARTS;
  let part = index % PARTS;
  let at = place(group, index);
  let a = x[at];
  let b = x[at + 1u];
  let c = x[at + 2u];
  let d = x[at + 3u];
  largest_of[index] = max(max(bits_of(a), bits_of(b)), max(bits_of(c), bits_of(d)));
  workgroupBarrier();
  var largest = 0u;
  for (var i = 0u; i < PARTS; i++) {
    largest = max(largest, largest_of[index - part + i]);
  }
  if (token >= params.tokens) {
    return;
  }
  let scale = row_scale(largest);
  if (part == 0u) {
    numbers[params.scales + group.y * params.tokens + token] = select(scale.down, 0.0, largest == 0u);
  }
  let first = params.rows + (group.y * params.tokens + token) * (HEAD_DIM / 8u) + part * 2u;
  operands[first] = eight(a * scale.up, b * scale.up);
  operands[first + 1u] = eight(c * scale.up, d * scale.up);
}

@compute @workgroup_size(HEAD_DIM)
fn rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  pack(group, index);
}

@compute @workgroup_size(HEAD_DIM)
fn gradients(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  pack(group, index);
  let at = place(group, index);
  var own = 0.0;
  for (var i = 0u; i < 4u; i++) {
    own += dot(o[at + i], x[at + i]);
  }
  delta_of[index] = own;
  workgroupBarrier();
  let token = group.x * 16u + index / PARTS;
  if (index % PARTS != 0u || token >= params.tokens) {
    return;
  }
  var whole = 0.0;
  for (var i = 0u; i < PARTS; i++) {
    whole += delta_of[index + i];
  }
  delta[group.y * params.tokens + token] = whole;
}
