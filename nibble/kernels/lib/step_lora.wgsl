// The adapters of a product's up to three members (layer_step.h): hidden values h = A x are shared out over the workgroups before the
// product and handed to all; rows of B meet them after it.
@group(0) @binding(16) var<storage, read> lora: array<f32>;

const MEMBERS = 3u;                                // of a product, at most
const HIDDEN_ROWS = MEMBERS * RANK;
const OWN_HIDDEN = (HIDDEN_ROWS + WORKGROUPS - 1u) / WORKGROUPS;  // of a workgroup, at most
var<workgroup> hidden_shares: array<f32, OWN_HIDDEN * SUBGROUPS>;
var<workgroup> hidden: array<f32, HIDDEN_ROWS>;

fn place_of_a(projection: u32) -> u32 {
  return params.a_begin[projection / 4u][projection % 4u];
}
fn place_of_b(projection: u32) -> u32 {
  return params.b_begin[projection / 4u][projection % 4u];
}
fn adapted(projection: u32) -> bool {
  return ((params.adapted >> projection) & 1u) != 0u;
}

// One sweep over `count` inputs from `first` on, in `values`, of the members from projection `projection` on.
fn add_hidden(projection: u32, members: u32, inputs: u32, first: u32, count: u32, invocation: u32, subgroup: u32, lane: u32,
              workgroup: u32) {
  for (var n = 0u; n < OWN_HIDDEN; n++) {
    let row = workgroup + n * WORKGROUPS;
    var sum = 0.0;
    if (row < members * RANK && adapted(projection + row / RANK)) {
      let a = place_of_a(projection + row / RANK) + row % RANK * inputs + first;
      for (var k = invocation; k < count; k += WORKGROUP) {
        sum = fma(values[place(k)], lora[a + k], sum);
      }
    }
    sum = subgroupAdd(sum);
    if (lane == 0u) {
      hidden_shares[n * SUBGROUPS + subgroup] = select(0.0, hidden_shares[n * SUBGROUPS + subgroup], first > 0u) + sum;
    }
  }
}

// After a barrier.
fn put_hidden(at: u32, projection: u32, members: u32, factor: f32, invocation: u32, workgroup: u32) {
  for (var n = invocation; n < OWN_HIDDEN; n += WORKGROUP) {
    let row = workgroup + n * WORKGROUPS;
    if (row < members * RANK && adapted(projection + row / RANK)) {
      var sum = 0.0;
      for (var s = 0u; s < SUBGROUPS; s++) {
        sum += hidden_shares[n * SUBGROUPS + s];
      }
      put(at + row, sum * factor);
    }
  }
}

// Before a barrier.
fn take_hidden(at: u32, projection: u32, members: u32, invocation: u32) {
  for (var i = invocation; i < members * RANK; i += WORKGROUP) {
    if (adapted(projection + i / RANK)) {
      hidden[i] = take(at + i);
    }
  }
}

// scaling * B h of row `row` of projection `projection`, which is the product's member `member`.
fn share_of_adapter(projection: u32, member: u32, row: u32) -> f32 {
  if (!adapted(projection)) {
    return 0.0;
  }
  let b = place_of_b(projection) + row * RANK;
  var sum = 0.0;
  for (var r = 0u; r < RANK; r++) {
    sum = fma(lora[b + r], hidden[member * RANK + r], sum);
  }
  return params.scaling[projection / 4u][projection % 4u] * sum;
}
