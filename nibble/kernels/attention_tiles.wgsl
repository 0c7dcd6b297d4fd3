// Attention and the gradients of queries, a workgroup BLOCK queries of a head and all keys that they meet; lib/attention_tiles.wgsl says how
// it is spread. Formulas and layouts: attention.h.
//
// Prelude: of lib/attention_tiles.wgsl.

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<K>;
@group(0) @binding(3) var<storage, read> v: array<K>;
@group(0) @binding(4) var<storage, read> key_begin: array<u32>;
@group(0) @binding(5) var<storage, read> key_end: array<u32>;

@group(0) @binding(6) var<storage, read_write> o: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> lse_out: array<f32>;

@group(0) @binding(6) var<storage, read> query_d_o: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read> query_lse: array<f32>;
@group(0) @binding(8) var<storage, read> query_delta: array<f32>;
@group(0) @binding(9) var<storage, read_write> dq: array<vec4<f32>>;

@compute @workgroup_size(INVOCATIONS)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) invocation: u32) {
  // Late queries meet most keys, so they begin.
  let first = params.first_token + (groups.x - 1u - group.x) * BLOCK;
  let count = min(BLOCK, params.last_token - first);
  let queries = Rows((group.y * params.tokens + first) * VECTORS, VECTORS, count);
  let down = invocation / ACROSS;
  var begins: array<u32, ROWS>;
  var ends: array<u32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    let query = first + min(down + DOWN * r, count - 1u);
    begins[r] = key_begin[query];
    ends[r] = key_end[query];
  }

  var results: Results;
  var softmax = Softmax(LOWEST, 0.0);
  let end = key_end[first + count - 1u];
  for (var key = key_begin[first]; key < end; key += BLOCK) {
    let keys = Rows(key_rows(group.y) + key * VECTORS, VECTORS, end - key);
    var tile = products(invocation, &q, queries, &k, keys);
    let number = key + 4u * (invocation % ACROSS) + vec4<u32>(0u, 1u, 2u, 3u);
    for (var r = 0u; r < ROWS; r++) {
      let met = (number >= vec4<u32>(begins[r])) & (number < vec4<u32>(ends[r]));
      tile[r] = select(vec4<f32>(LOWEST), tile[r] * params.scale, met);
    }
    set_weights(invocation, tile);
    workgroupBarrier();
    softmax = softmax_step(invocation, softmax);
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r++) {
      for (var c = 0u; c < RESULTS; c++) {
        results[r][c] *= row_factor[down + DOWN * r];
      }
    }
    accumulate(invocation, &results, &v, keys);
  }

  let row_lse = softmax_end(invocation, softmax);
  if (invocation % PARTS == 0u && invocation / PARTS < count) {
    lse_out[query_entry(first + invocation / PARTS, group.y)] = row_lse;
  }
  for (var r = 0u; r < ROWS; r++) {
    let own = down + DOWN * r;
    for (var c = 0u; c < RESULTS; c++) {
      let column = invocation % ACROSS + ACROSS * c;
      if (own < count && column < VECTORS) {
        o[token_row(first + own, group.y) + column] = results[r][c] * row_factor[own];
      }
    }
  }
}

@compute @workgroup_size(INVOCATIONS)
fn query_gradients(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) invocation: u32) {
  let first = params.first_token + (groups.x - 1u - group.x) * BLOCK;
  let count = min(BLOCK, params.last_token - first);
  let queries = Rows((group.y * params.tokens + first) * VECTORS, VECTORS, count);
  let queries_d_o = Rows(token_row(first, group.y), params.heads * VECTORS, count);
  let down = invocation / ACROSS;
  var begins: array<u32, ROWS>;
  var ends: array<u32, ROWS>;
  var own_lse: array<f32, ROWS>;
  var own_delta: array<f32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    let query = first + min(down + DOWN * r, count - 1u);
    begins[r] = key_begin[query];
    ends[r] = key_end[query];
    own_lse[r] = query_lse[query_entry(query, group.y)];
    own_delta[r] = query_delta[query_entry(query, group.y)];
  }

  var results: Results;
  let end = key_end[first + count - 1u];
  for (var key = key_begin[first]; key < end; key += BLOCK) {
    let keys = Rows(key_rows(group.y) + key * VECTORS, VECTORS, end - key);
    let score = products(invocation, &q, queries, &k, keys);
    var tile = products(invocation, &query_d_o, queries_d_o, &v, keys);
    let number = key + 4u * (invocation % ACROSS) + vec4<u32>(0u, 1u, 2u, 3u);
    for (var r = 0u; r < ROWS; r++) {
      let met = (number >= vec4<u32>(begins[r])) & (number < vec4<u32>(ends[r]));
      let p = select(vec4<f32>(), exp(min(score[r] * params.scale - own_lse[r], vec4<f32>())), met);
      tile[r] = p * (tile[r] - own_delta[r]);
    }
    set_weights(invocation, tile);
    accumulate(invocation, &results, &k, keys);
  }

  for (var r = 0u; r < ROWS; r++) {
    let own = down + DOWN * r;
    for (var c = 0u; c < RESULTS; c++) {
      let column = invocation % ACROSS + ACROSS * c;
      if (own < count && column < VECTORS) {
        dq[queries.first + own * VECTORS + column] = results[r][c] * params.scale;
      }
    }
  }
}
