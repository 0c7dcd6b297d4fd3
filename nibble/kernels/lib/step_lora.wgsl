// The adapters of a product's up to three members (layer_step.h): hidden values h = A x are shared out over the workgroups before the
// product and handed to all; rows of B meet them after it. Each value is handed on in pieces, parts of its sum, so that most workgroups
// have a short one and none is late with its product.
@group(0) @binding(16) var<storage, read> lora: array<f32>;

const MEMBERS = 3u;                                // of a product, at most
const HIDDEN_ROWS = MEMBERS * RANK;
const OWN_HIDDEN = (HIDDEN_ROWS + WORKGROUPS - 1u) / WORKGROUPS;  // pieces of a workgroup, at most
var<workgroup> hidden_shares: array<f32, OWN_HIDDEN * SUBGROUPS>;
var<workgroup> hidden: array<f32, HIDDEN_ROWS>;

fn place_of_a(projection: u32) -> u32 {
  return params.a_begin[projection / 4u][projection % 4u] + layer * params.a_stride;
}
fn place_of_b(projection: u32) -> u32 {
  return params.b_begin[projection / 4u][projection % 4u] + layer * params.b_stride;
}
fn adapted(projection: u32) -> bool {
  return ((params.adapted >> projection) & 1u) != 0u;
}

// Pieces of a hidden value: a power of two that a subgroup has lanes for.
fn pieces_of(members: u32) -> u32 {
  let most = min(max(WORKGROUPS / (members * RANK), 1u), SUBGROUP);
  return 1u << firstLeadingBit(most);
}

// A piece of a workgroup: inputs [begin, end) of those of a sweep, and where the first one's element of A is.
struct Piece {
  begin: u32,
  end: u32,
  a: u32,
}
fn piece_of(n: u32, projection: u32, members: u32, inputs: u32, first: u32, count: u32, workgroup: u32) -> Piece {
  let pieces = pieces_of(members);
  let item = workgroup + n * WORKGROUPS;
  let row = item / pieces;
  var piece: Piece;
  if (row < members * RANK && adapted(projection + row / RANK)) {
    let length = (count + pieces - 1u) / pieces;
    piece.begin = item % pieces * length;
    piece.end = min(piece.begin + length, count);
    piece.a = place_of_a(projection + row / RANK) + row % RANK * inputs + first;
  }
  return piece;
}

// An invocation's first two elements of A in the workgroup's first piece, to be asked for before x is there.
fn look_ahead_at_a(projection: u32, members: u32, inputs: u32, first: u32, count: u32, invocation: u32, workgroup: u32) -> vec2<f32> {
  let piece = piece_of(0u, projection, members, inputs, first, count, workgroup);
  var a: vec2<f32>;
  if (piece.end > piece.begin) {
    let k = piece.begin + invocation;
    a.x = lora[piece.a + min(k, piece.end - 1u)];
    a.y = lora[piece.a + min(k + WORKGROUP, piece.end - 1u)];
  }
  return a;
}

// One sweep over `count` inputs from `first` on, in `scratch`, of the members from projection `projection` on. Compilers know the number of
// rounds and so ask for all elements at once.
fn add_hidden(projection: u32, members: u32, inputs: u32, first: u32, count: u32, ahead: vec2<f32>, invocation: u32, subgroup: u32,
              lane: u32, workgroup: u32) {
  let rounds = ((count + pieces_of(members) - 1u) / pieces_of(members) + WORKGROUP - 1u) / WORKGROUP;
  for (var n = 0u; n < OWN_HIDDEN; n++) {
    let piece = piece_of(n, projection, members, inputs, first, count, workgroup);
    var sum = 0.0;
    for (var round = 0u; round < rounds; round++) {
      let k = piece.begin + round * WORKGROUP + invocation;
      let inside = min(k, max(piece.end, 1u) - 1u);
      var a = select(ahead.x, ahead.y, round == 1u);
      if (n > 0u || round > 1u) {
        a = lora[piece.a + inside];
      }
      sum += select(0.0, scratch[room_of(inside)] * a, k < piece.end);
    }
    sum = subgroupAdd(sum);
    if (lane == 0u) {
      hidden_shares[n * SUBGROUPS + subgroup] = select(0.0, hidden_shares[n * SUBGROUPS + subgroup], first > 0u) + sum;
    }
  }
}

// After a barrier.
fn put_hidden(at: u32, projection: u32, members: u32, invocation: u32, workgroup: u32) {
  for (var n = invocation; n < OWN_HIDDEN; n += WORKGROUP) {
    let item = workgroup + n * WORKGROUPS;
    let row = item / pieces_of(members);
    if (row < members * RANK && adapted(projection + row / RANK)) {
      var sum = 0.0;
      for (var s = 0u; s < SUBGROUPS; s++) {
        sum += hidden_shares[n * SUBGROUPS + s];
      }
      put(at + item, sum);
    }
  }
}

// Before a barrier.
fn take_hidden(at: u32, projection: u32, members: u32, subgroup: u32, lane: u32) {
  let pieces = pieces_of(members);
  for (var begin = 0u; begin < members * RANK * pieces; begin += WORKGROUP) {
    let item = begin + subgroup * SUBGROUP + lane;
    let row = item / pieces;
    let there = row < members * RANK && adapted(projection + row / RANK);
    var value = 0.0;
    if (there) {
      value = take(at + item);
    }
    for (var other = 1u; other < pieces; other *= 2u) {
      value += subgroupShuffleXor(value, other);
    }
    if (there && item % pieces == 0u) {
      hidden[row] = value;
    }
  }
}

// Of row n of a workgroup's in a product: its projection, which member of the product that is, and its row there.
struct AdapterRow {
  projection: u32,
  member: u32,
  row: u32,
}
fn adapter_row(p: Product, own: Own, n: u32) -> AdapterRow {
  switch (p.weight) {
    case 0u: {
      let row = own.first + n;
      let member = u32(row >= ATTENDED) + u32(row >= ATTENDED + KEY_HEADS * HEAD_DIM);
      return AdapterRow(member, member, row - select(0u, ATTENDED + (member - 1u) * KEY_HEADS * HEAD_DIM, member > 0u));
    }
    case 1u: { return AdapterRow(3u, 0u, own.first + n); }
    case 2u: { return AdapterRow(4u + n % 2u, n % 2u, own.first + n / 2u); }
    default: { return AdapterRow(6u, 0u, own.first + n); }
  }
}
fn scaling_of(projection: u32) -> f32 {
  return params.scaling[projection / 4u][projection % 4u];
}
