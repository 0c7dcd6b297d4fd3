// Attention of few queries and many keys: a workgroup a (query, head), whose invocations share the keys. In tiles of
// WORKGROUP keys, an invocation scores one key each, then invocation (part, column) adds the values of every PARTS-th
// key to vector `column` of the result; the parts are added in their order at the end. Formulas, layouts: attention.h.
//
// Prelude: HEAD_DIM; WORKGROUP, at least HEAD_DIM / 4 and a multiple of 4.

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> key_begin: array<u32>;
@group(0) @binding(5) var<storage, read> key_end: array<u32>;
@group(0) @binding(6) var<storage, read_write> o: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> lse: array<f32>;

const PARTS = WORKGROUP / VECTORS;

var<workgroup> scores: array<f32, WORKGROUP>;
var<workgroup> weights: array<f32, WORKGROUP>;
var<workgroup> sums: array<vec4<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let query = params.first_token + group.x;
  let row = (group.y * params.tokens + query) * VECTORS;
  let keys = key_rows(group.y);
  let end = key_end[query];
  let part = invocation / VECTORS;
  let column = invocation % VECTORS;

  var largest = f32(LOWEST);
  var total = 0.0;
  var sum = vec4<f32>();
  for (var first = key_begin[query]; first < end; first += WORKGROUP) {
    let count = min(WORKGROUP, end - first);
    var score = f32(LOWEST);
    if (invocation < count) {
      let at = keys + (first + invocation) * VECTORS;
      score = 0.0;
      for (var c = 0u; c < VECTORS; c++) {
        score += dot(q[row + c], k[at + c]);
      }
      score *= params.scale;
    }
    scores[invocation] = score;
    workgroupBarrier();
    let before = largest;
    for (var i = 0u; i < count; i++) {
      largest = max(largest, scores[i]);
    }
    weights[invocation] = exp(score - largest);
    workgroupBarrier();
    let shrink = exp(before - largest);
    total *= shrink;
    for (var i = 0u; i < count; i++) {
      total += weights[i];
    }
    sum *= shrink;
    if (part < PARTS) {
      for (var i = part; i < count; i += PARTS) {
        sum += weights[i] * v[keys + (first + i) * VECTORS + column];
      }
    }
  }

  sums[invocation] = sum;
  workgroupBarrier();
  if (part == 0u) {
    for (var i = 1u; i < PARTS; i++) {
      sum += sums[i * VECTORS + column];
    }
    o[token_row(query, group.y) + column] = sum / total;
  }
  if (invocation == 0u) {
    lse[query_entry(query, group.y)] = largest + log(total);
  }
}
