// Slots sorted by expert (expert_rows.h), one workgroup an expert. Each lane has a run of slots, so that the lanes' rows follow one
// another in the order of slots.
// count: counts[e] = slots of expert e.
// place: where the rows of e begin, the rows of its slots, and its tiles.

struct Params {
  slots: u32,
  experts: u32,
  most_tiles: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> expert: array<u32>;

struct Run {
  begin: u32,
  end: u32,
}

fn run_of(lane: u32) -> Run {
  let share = (params.slots + WORKGROUP - 1u) / WORKGROUP;
  return Run(min(lane * share, params.slots), min((lane + 1u) * share, params.slots));
}

var<workgroup> of_lane: array<u32, WORKGROUP>;

// Counts the slots of an expert, by lane in `of_lane`.
fn count_run(e: u32, lane: u32) {
  let run = run_of(lane);
  var count = 0u;
  for (var slot = run.begin; slot < run.end; slot++) {
    count += select(0u, 1u, expert[slot] == e);
  }
  of_lane[lane] = count;
  workgroupBarrier();
}

@group(0) @binding(2) var<storage, read_write> counts: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn count(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  count_run(group.x, lane);
  if (lane == 0u) {
    var sum = 0u;
    for (var i = 0u; i < WORKGROUP; i++) {
      sum += of_lane[i];
    }
    counts[group.x] = sum;
  }
}

@group(0) @binding(2) var<storage, read> counted: array<u32>;
@group(0) @binding(3) var<storage, read_write> begin: array<u32>;
@group(0) @binding(4) var<storage, read_write> row_of_slot: array<u32>;
@group(0) @binding(5) var<storage, read_write> slot_of_row: array<u32>;
@group(0) @binding(6) var<storage, read_write> tiles: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn place(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = group.x;
  count_run(e, lane);
  var first = 0u;
  var tile = 0u;
  for (var i = 0u; i < e; i++) {
    first += counted[i];
    tile += (counted[i] + TILE_ROWS - 1u) / TILE_ROWS;
  }
  let rows = counted[e];
  let own_tiles = (rows + TILE_ROWS - 1u) / TILE_ROWS;
  for (var i = lane; i < own_tiles; i += WORKGROUP) {
    tiles[3u * (tile + i)] = e;
    tiles[3u * (tile + i) + 1u] = first + i * TILE_ROWS;
    tiles[3u * (tile + i) + 2u] = min(TILE_ROWS, rows - i * TILE_ROWS);
  }
  let last = e + 1u == params.experts;
  for (var i = tile + own_tiles + lane; last && i < params.most_tiles; i += WORKGROUP) {
    tiles[3u * i + 2u] = 0u;
  }
  if (lane == 0u) {
    begin[e] = first;
    if (last) {
      begin[e + 1u] = params.slots;
    }
  }
  var row = first;
  for (var i = 0u; i < lane; i++) {
    row += of_lane[i];
  }
  let run = run_of(lane);
  for (var slot = run.begin; slot < run.end; slot++) {
    if (expert[slot] == e) {
      row_of_slot[slot] = row;
      slot_of_row[row] = slot;
      row++;
    }
  }
}
