// Attention's gradients of keys and values, a workgroup BLOCK keys of a head and all queries that meet them; lib/attention_tiles.wgsl says
// how it is spread. Formulas and layouts: attention.h.
//
// Prelude: of lib/attention_tiles.wgsl, whose columns are queries here, in f32.

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> query_end: array<u32>;
@group(0) @binding(5) var<storage, read> d_o: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> lse: array<f32>;
@group(0) @binding(7) var<storage, read> delta: array<f32>;
@group(0) @binding(8) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(9) var<storage, read_write> dv: array<vec4<f32>>;

// A workgroup's rows are keys of one key head; the heads of its group add in their order.
@compute @workgroup_size(INVOCATIONS)
fn key_gradients(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let first = group.x * BLOCK;
  let count = min(BLOCK, params.tokens - first);
  let keys = Rows((group.y * params.capacity + first) * VECTORS, VECTORS, count);
  let down = invocation / ACROSS;
  let begin = max(first, params.first_token);
  let end = min(query_end[first + count - 1u], params.last_token);
  var ends: array<u32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    ends[r] = min(end, query_end[first + min(down + DOWN * r, count - 1u)]);
  }

  var results_k: Results;
  var results_v: Results;
  for (var head = group.y * params.group; head < (group.y + 1u) * params.group; head++) {
    for (var query = begin; query < end; query += BLOCK) {
      let queries = Rows((head * params.tokens + query) * VECTORS, VECTORS, end - query);
      let queries_d_o = Rows(token_row(query, head), params.heads * VECTORS, end - query);
      let score = products(invocation, &k, keys, &q, queries);
      var tile = products(invocation, &v, keys, &d_o, queries_d_o);
      let number = query + 4u * (invocation % ACROSS) + vec4<u32>(0u, 1u, 2u, 3u);
      let entry = query_entry(0u, head) + min(number, vec4<u32>(end - 1u));
      let lse4 = vec4<f32>(lse[entry.x], lse[entry.y], lse[entry.z], lse[entry.w]);
      let delta4 = vec4<f32>(delta[entry.x], delta[entry.y], delta[entry.z], delta[entry.w]);
      var p: Tile;
      for (var r = 0u; r < ROWS; r++) {
        let met = (number >= vec4<u32>(first + down + DOWN * r)) & (number < vec4<u32>(ends[r]));
        p[r] = select(vec4<f32>(), exp(min(score[r] * params.scale - lse4, vec4<f32>())), met);
        tile[r] = p[r] * (tile[r] - delta4);
      }
      set_weights(invocation, p);
      accumulate(invocation, &results_v, &d_o, queries_d_o);
      workgroupBarrier();
      set_weights(invocation, tile);
      accumulate(invocation, &results_k, &q, queries);
    }
  }

  for (var r = 0u; r < ROWS; r++) {
    let own = down + DOWN * r;
    for (var c = 0u; c < RESULTS; c++) {
      let column = invocation % ACROSS + ACROSS * c;
      if (own < count && column < VECTORS) {
        let at = keys.first + own * VECTORS + column;
        var before_k = vec4<f32>();
        var before_v = vec4<f32>();
        if (params.more == 1u) {
          before_k = dk[at];
          before_v = dv[at];
        }
        dk[at] = before_k + results_k[r][c] * params.scale;
        dv[at] = before_v + results_v[r][c];
      }
    }
  }
}
