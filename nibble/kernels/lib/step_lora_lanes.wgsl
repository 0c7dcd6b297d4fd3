// Rows of B where a workgroup's have no more than eight elements for each invocation, which asks for its own before the product: element e is
// that of row e / RANK. RANK is a power of two up to SUBGROUP, so that a row's lie in one subgroup. Prelude: MOST_ROWS, of a workgroup in any product.
var<workgroup> adapter_sums: array<f32, MOST_ROWS>;

struct OfB {
  first: vec4<f32>,
  second: vec4<f32>,
}

// Of any workgroup, at most.
fn elements_of_b(p: Product) -> u32 {
  return (p.units + WORKGROUPS - 1u) / WORKGROUPS * p.halves * RANK;
}
fn existing_row(p: Product, own: Own, element: u32) -> AdapterRow {
  return adapter_row(p, own, min(element / RANK, max(own.count * p.halves, 1u) - 1u));
}

fn element_of_b(p: Product, own: Own, element: u32) -> f32 {
  let at = existing_row(p, own, element);
  // Of a projection without an adapter any element is read, and not met.
  return lora[select(0u, place_of_b(at.projection) + at.row * RANK, adapted(at.projection)) + element % RANK];
}
fn four_of_b(p: Product, own: Own, element: u32) -> vec4<f32> {
  var b: vec4<f32>;
  b.x = element_of_b(p, own, element);
  if (elements_of_b(p) > WORKGROUP) {
    b.y = element_of_b(p, own, element + WORKGROUP);
  }
  if (elements_of_b(p) > 2u * WORKGROUP) {
    b.z = element_of_b(p, own, element + 2u * WORKGROUP);
  }
  if (elements_of_b(p) > 3u * WORKGROUP) {
    b.w = element_of_b(p, own, element + 3u * WORKGROUP);
  }
  return b;
}
fn look_ahead_at_b(p: Product, own: Own, subgroup: u32, lane: u32) -> OfB {
  let element = subgroup * SUBGROUP + lane;
  var b: OfB;
  if (params.adapted != 0u) {
    b.first = four_of_b(p, own, element);
    if (elements_of_b(p) > 4u * WORKGROUP) {
      b.second = four_of_b(p, own, element + 4u * WORKGROUP);
    }
  }
  return b;
}

fn meet_element(p: Product, own: Own, element: u32, b: f32) {
  let at = existing_row(p, own, element);
  var sum = 0.0;
  if (adapted(at.projection)) {
    sum = b * hidden[at.member * RANK + element % RANK];
  }
  for (var other = 1u; other < RANK; other *= 2u) {
    sum += subgroupShuffleXor(sum, other);
  }
  if (element % RANK == 0u && element / RANK < own.count * p.halves) {
    adapter_sums[element / RANK] = scaling_of(at.projection) * sum;
  }
}
fn meet_four(p: Product, own: Own, element: u32, b: vec4<f32>) {
  meet_element(p, own, element, b.x);
  if (elements_of_b(p) > WORKGROUP) {
    meet_element(p, own, element + WORKGROUP, b.y);
  }
  if (elements_of_b(p) > 2u * WORKGROUP) {
    meet_element(p, own, element + 2u * WORKGROUP, b.z);
  }
  if (elements_of_b(p) > 3u * WORKGROUP) {
    meet_element(p, own, element + 3u * WORKGROUP, b.w);
  }
}
// Between barriers behind which `hidden` is there, and the sums are.
fn meet_b(p: Product, own: Own, b: OfB, subgroup: u32, lane: u32) {
  let element = subgroup * SUBGROUP + lane;
  meet_four(p, own, element, b.first);
  if (elements_of_b(p) > 4u * WORKGROUP) {
    meet_four(p, own, element + 4u * WORKGROUP, b.second);
  }
  workgroupBarrier();
}

// scaling * B h of row n of a workgroup's.
fn share_of_adapter(p: Product, own: Own, n: u32) -> f32 {
  return adapter_sums[n];
}
