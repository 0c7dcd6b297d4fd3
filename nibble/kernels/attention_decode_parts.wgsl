// Puts together what the parts of a query's keys left (attention_decode.wgsl), a workgroup a (query, head): invocation (slot,
// column) adds every SLOTS-th part to vector `column` of the result, and the slots are added in their order.
//
// Prelude: HEAD_DIM; MOST_PARTS, at most WORKGROUP.

@group(0) @binding(1) var<storage, read> part_o: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> part_numbers: array<vec2<f32>>;  // the largest score, the sum of weights
@group(0) @binding(3) var<storage, read_write> o: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;

const WORKGROUP = 128u;
const SLOTS = WORKGROUP / VECTORS;

var<workgroup> largests: array<f32, MOST_PARTS>;
var<workgroup> weights: array<f32, MOST_PARTS>;
var<workgroup> totals: array<f32, MOST_PARTS>;
var<workgroup> vectors: array<vec4<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let query = params.first_token + group.x;
  let slot = invocation / VECTORS;
  let column = invocation % VECTORS;
  var own = vec2<f32>(LOWEST, 0.0);
  if (invocation < params.parts) {
    own = part_numbers[part_row(query, invocation, group.y)];
    largests[invocation] = own.x;
  }
  workgroupBarrier();
  var largest = f32(LOWEST);
  for (var p = 0u; p < params.parts; p++) {
    largest = max(largest, largests[p]);
  }
  if (invocation < params.parts) {
    weights[invocation] = exp(own.x - largest);
    totals[invocation] = exp(own.x - largest) * own.y;
  }
  workgroupBarrier();
  var sum = vec4<f32>();
  if (slot < SLOTS) {
    for (var p = slot; p < params.parts; p += SLOTS) {
      sum += weights[p] * part_o[part_row(query, p, group.y) * VECTORS + column];
    }
  }
  vectors[invocation] = sum;
  workgroupBarrier();
  if (slot > 0u) {
    return;
  }
  for (var i = 1u; i < SLOTS; i++) {
    sum += vectors[i * VECTORS + column];
  }
  var total = 0.0;
  for (var p = 0u; p < params.parts; p++) {
    total += totals[p];
  }
  o[token_row(query, group.y) + column] = sum / total;
  if (column == 0u) {
    lse[query_entry(query, group.y)] = largest + log(total);
  }
}
