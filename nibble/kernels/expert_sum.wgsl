// y[t] = plus[t] + the sum over j of x[row_of_slot[t * PER_TOKEN + j]], in the order of j; one workgroup a token. Without PLUS the
// sum alone. lib/wide4.wgsl or lib/wide1.wgsl by the row's length.

struct Params {
  rows: u32,
  columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Wide>;
@group(0) @binding(2) var<storage, read> row_of_slot: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<Wide>;
@group(0) @binding(4) var<storage, read> plus: array<Wide>;

fn sum_of(token: u32, i: u32, wides: u32) -> Wide {
  var sum = Wide(0.0);
  for (var j = 0u; j < PER_TOKEN; j++) {
    sum += x[row_of_slot[token * PER_TOKEN + j] * wides + i];
  }
  return sum;
}

@compute @workgroup_size(WORKGROUP)
fn alone(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) lane: u32) {
  let token = linear_workgroup(group, groups);
  if (token >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  for (var i = lane; i < wides; i += WORKGROUP) {
    y[token * wides + i] = sum_of(token, i, wides);
  }
}

@compute @workgroup_size(WORKGROUP)
fn on_top(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) lane: u32) {
  let token = linear_workgroup(group, groups);
  if (token >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  for (var i = lane; i < wides; i += WORKGROUP) {
    y[token * wides + i] = plus[token * wides + i] + sum_of(token, i, wides);
  }
}
