// Attention of few queries and many keys: a workgroup a (query, head), whose invocations share the keys. In tiles of
// 4 WORKGROUP keys, an invocation scores 4 neighbours, then invocation (part, column) adds the values of every PARTS-th
// four to vector `column` of the result; the parts are added in their order at the end. Formulas, layouts: attention.h.
//
// Prelude: HEAD_DIM; WORKGROUP, at least HEAD_DIM / 4.

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> key_begin: array<u32>;
@group(0) @binding(5) var<storage, read> key_end: array<u32>;
@group(0) @binding(6) var<storage, read_write> o: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> lse: array<f32>;

const PARTS = WORKGROUP / VECTORS;

var<workgroup> numbers: array<f32, WORKGROUP>;        // an invocation's largest score, at the end its total
var<workgroup> vectors: array<vec4<f32>, WORKGROUP>;  // its 4 weights, at the end its part of the result

// First vectors of 4 neighbouring keys; those from `end` on repeat the last.
fn four_rows(keys: u32, first: u32, end: u32) -> vec4<u32> {
  return keys + min(first + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(end - 1u)) * VECTORS;
}

// Scores of those keys and the query whose vectors begin at `row`; LOWEST from `end` on.
fn four_scores(row: u32, keys: u32, first: u32, end: u32) -> vec4<f32> {
  if (first >= end) {
    return vec4<f32>(LOWEST);
  }
  let at = four_rows(keys, first, end);
  var score = vec4<f32>();
  for (var c = 0u; c < VECTORS; c++) {
    let value = q[row + c] * params.scale;
    score += vec4<f32>(dot(value, k[at.x + c]), dot(value, k[at.y + c]), dot(value, k[at.z + c]),
                       dot(value, k[at.w + c]));
  }
  return select(vec4<f32>(LOWEST), score, first + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(end));
}

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
  for (var first = key_begin[query]; first < end; first += 4u * WORKGROUP) {
    let score = four_scores(row, keys, first + 4u * invocation, end);
    numbers[invocation] = max(max(score.x, score.y), max(score.z, score.w));
    workgroupBarrier();
    let before = largest;
    for (var i = 0u; i < WORKGROUP; i++) {
      largest = max(largest, numbers[i]);
    }
    let shrink = exp(before - largest);
    let p = exp(score - largest);
    vectors[invocation] = p;
    workgroupBarrier();
    total = total * shrink + (p.x + p.y + p.z + p.w);
    sum *= shrink;
    if (part < PARTS) {
      let fours = (min(end - first, 4u * WORKGROUP) + 3u) / 4u;
      for (var i = part; i < fours; i += PARTS) {
        let weight = vectors[i];
        let at = four_rows(keys, first + 4u * i, end) + column;
        sum += weight.x * v[at.x] + weight.y * v[at.y] + weight.z * v[at.z] + weight.w * v[at.w];
      }
    }
  }

  workgroupBarrier();
  numbers[invocation] = total;
  vectors[invocation] = sum;
  workgroupBarrier();
  if (part > 0u) {
    return;
  }
  total = 0.0;
  for (var i = 0u; i < WORKGROUP; i++) {
    total += numbers[i];
  }
  for (var i = 1u; i < PARTS; i++) {
    sum += vectors[i * VECTORS + column];
  }
  o[token_row(query, group.y) + column] = sum / total;
  if (invocation == 0u) {
    lse[query_entry(query, group.y)] = largest + log(total);
  }
}
