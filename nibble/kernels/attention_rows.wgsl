// Attention with one invocation a row: no barriers, no workgroup memory. The rows of a workgroup are neighbours, so the
// addresses of what they meet (keys, or queries in key_gradients) are the same for all of them: loads that a software
// adapter does once for all lanes. Formulas and layouts: attention.h.
//
// Prelude: HEAD_DIM, WIDTH (rows of a workgroup; its workgroups number (tile of rows, head)); K: key_cache.h.

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<K>;
@group(0) @binding(3) var<storage, read> v: array<K>;
@group(0) @binding(4) var<storage, read> key_begin: array<u32>;
@group(0) @binding(5) var<storage, read> key_end: array<u32>;
@group(0) @binding(4) var<storage, read> query_end: array<u32>;

@group(0) @binding(6) var<storage, read_write> o: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> lse_out: array<f32>;

@group(0) @binding(6) var<storage, read> query_d_o: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read> query_lse: array<f32>;
@group(0) @binding(8) var<storage, read> query_delta: array<f32>;
@group(0) @binding(9) var<storage, read_write> dq: array<vec4<f32>>;

@group(0) @binding(5) var<storage, read> d_o: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> lse: array<f32>;
@group(0) @binding(7) var<storage, read> delta: array<f32>;
@group(0) @binding(8) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(9) var<storage, read_write> dv: array<vec4<f32>>;

// Keys or queries met at a time: the row's own values are then fetched once for all of them.
const STEP = 4u;

fn key_at(vector: u32) -> vec4<f32> {
  return vec4<f32>(k[vector]);
}
fn value_at(vector: u32) -> vec4<f32> {
  return vec4<f32>(v[vector]);
}

@compute @workgroup_size(WIDTH)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let first = params.first_token + group.x * WIDTH;
  let last = min(first + WIDTH, params.last_token) - 1u;
  let query = min(first + lane, last);
  let own_begin = key_begin[query];
  let own_end = key_end[query];
  let keys = key_rows(group.y);
  let row = (group.y * params.tokens + query) * VECTORS;
  var own: array<vec4<f32>, VECTORS>;
  var sum: array<vec4<f32>, VECTORS>;
  for (var c = 0u; c < VECTORS; c++) {
    own[c] = q[row + c] * params.scale;
  }

  var largest = f32(LOWEST);
  var total = 0.0;
  let end = key_end[last];
  for (var key = key_begin[first]; key < end; key += STEP) {
    let index = min(vec4<u32>(key, key + 1u, key + 2u, key + 3u), vec4<u32>(end - 1u));
    let at = keys + index * VECTORS;
    var score = vec4<f32>();
    for (var c = 0u; c < VECTORS; c++) {
      score += vec4<f32>(dot(own[c], key_at(at.x + c)), dot(own[c], key_at(at.y + c)), dot(own[c], key_at(at.z + c)),
                         dot(own[c], key_at(at.w + c)));
    }
    let number = key + vec4<u32>(0u, 1u, 2u, 3u);
    let met = (number >= vec4<u32>(own_begin)) & (number < vec4<u32>(own_end));
    score = select(vec4<f32>(LOWEST), score, met);
    let before = largest;
    largest = max(largest, max(max(score.x, score.y), max(score.z, score.w)));
    let shrink = exp(before - largest);
    let p = select(vec4<f32>(), exp(score - largest), met);
    total = total * shrink + (p.x + p.y + p.z + p.w);
    for (var c = 0u; c < VECTORS; c++) {
      sum[c] = sum[c] * shrink + p.x * value_at(at.x + c) + p.y * value_at(at.y + c) + p.z * value_at(at.z + c) + p.w * value_at(at.w + c);
    }
  }

  if (first + lane > last) {
    return;
  }
  lse_out[query_entry(query, group.y)] = largest + log(total);
  let out = token_row(query, group.y);
  for (var c = 0u; c < VECTORS; c++) {
    o[out + c] = sum[c] / total;
  }
}

@compute @workgroup_size(WIDTH)
fn query_gradients(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let first = params.first_token + group.x * WIDTH;
  let last = min(first + WIDTH, params.last_token) - 1u;
  let query = min(first + lane, last);
  let own_begin = key_begin[query];
  let own_end = key_end[query];
  let own_lse = query_lse[query_entry(query, group.y)];
  let own_delta = query_delta[query_entry(query, group.y)];
  let keys = key_rows(group.y);
  let row = (group.y * params.tokens + query) * VECTORS;
  let row_d_o = token_row(query, group.y);
  var own: array<vec4<f32>, VECTORS>;
  var own_d_o: array<vec4<f32>, VECTORS>;
  var sum: array<vec4<f32>, VECTORS>;
  for (var c = 0u; c < VECTORS; c++) {
    own[c] = q[row + c] * params.scale;
    own_d_o[c] = query_d_o[row_d_o + c];
  }

  let end = key_end[last];
  for (var key = key_begin[first]; key < end; key += STEP) {
    let index = min(vec4<u32>(key, key + 1u, key + 2u, key + 3u), vec4<u32>(end - 1u));
    let at = keys + index * VECTORS;
    var score = vec4<f32>();
    var dp = vec4<f32>();
    for (var c = 0u; c < VECTORS; c++) {
      score += vec4<f32>(dot(own[c], key_at(at.x + c)), dot(own[c], key_at(at.y + c)), dot(own[c], key_at(at.z + c)),
                         dot(own[c], key_at(at.w + c)));
      dp += vec4<f32>(dot(own_d_o[c], value_at(at.x + c)), dot(own_d_o[c], value_at(at.y + c)), dot(own_d_o[c], value_at(at.z + c)),
                      dot(own_d_o[c], value_at(at.w + c)));
    }
    let number = key + vec4<u32>(0u, 1u, 2u, 3u);
    let met = (number >= vec4<u32>(own_begin)) & (number < vec4<u32>(own_end));
    let p = select(vec4<f32>(), exp(min(score - own_lse, vec4<f32>())), met);
    let ds = p * (dp - own_delta);
    for (var c = 0u; c < VECTORS; c++) {
      sum[c] += ds.x * key_at(at.x + c) + ds.y * key_at(at.y + c) + ds.z * key_at(at.z + c) + ds.w * key_at(at.w + c);
    }
  }

  if (first + lane > last) {
    return;
  }
  for (var c = 0u; c < VECTORS; c++) {
    dq[row + c] = sum[c] * params.scale;
  }
}

// A workgroup's rows are keys of one key head; the heads of its group add in their order.
@compute @workgroup_size(WIDTH)
fn key_gradients(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let first = group.x * WIDTH;
  let last = min(first + WIDTH, params.tokens) - 1u;
  let key = min(first + lane, last);
  let own_end = query_end[key];
  let row = (group.y * params.capacity + key) * VECTORS;
  var own_k: array<vec4<f32>, VECTORS>;
  var own_v: array<vec4<f32>, VECTORS>;
  var sum_k: array<vec4<f32>, VECTORS>;
  var sum_v: array<vec4<f32>, VECTORS>;
  for (var c = 0u; c < VECTORS; c++) {
    own_k[c] = key_at(row + c) * params.scale;
    own_v[c] = value_at(row + c);
  }

  let begin = max(first, params.first_token);
  let end = min(query_end[last], params.last_token);
  for (var head = group.y * params.group; head < (group.y + 1u) * params.group; head++) {
    for (var query = begin; query < end; query += STEP) {
      let number = query + vec4<u32>(0u, 1u, 2u, 3u);
      let index = min(number, vec4<u32>(end - 1u));
      let at = (head * params.tokens + index) * VECTORS;
      let at_d_o = vec4<u32>(token_row(index.x, head), token_row(index.y, head), token_row(index.z, head),
                             token_row(index.w, head));
      var score = vec4<f32>();
      var dp = vec4<f32>();
      for (var c = 0u; c < VECTORS; c++) {
        score += vec4<f32>(dot(own_k[c], q[at.x + c]), dot(own_k[c], q[at.y + c]), dot(own_k[c], q[at.z + c]),
                           dot(own_k[c], q[at.w + c]));
        dp += vec4<f32>(dot(own_v[c], d_o[at_d_o.x + c]), dot(own_v[c], d_o[at_d_o.y + c]),
                        dot(own_v[c], d_o[at_d_o.z + c]), dot(own_v[c], d_o[at_d_o.w + c]));
      }
      let entry = query_entry(0u, head) + index;
      let lse4 = vec4<f32>(lse[entry.x], lse[entry.y], lse[entry.z], lse[entry.w]);
      let delta4 = vec4<f32>(delta[entry.x], delta[entry.y], delta[entry.z], delta[entry.w]);
      let met = (number >= vec4<u32>(key)) & (number < vec4<u32>(min(own_end, end)));
      let p = select(vec4<f32>(), exp(min(score - lse4, vec4<f32>())), met);
      let ds = p * (dp - delta4);
      for (var c = 0u; c < VECTORS; c++) {
        sum_k[c] += ds.x * q[at.x + c] + ds.y * q[at.y + c] + ds.z * q[at.z + c] + ds.w * q[at.w + c];
        sum_v[c] += p.x * d_o[at_d_o.x + c] + p.y * d_o[at_d_o.y + c] + p.z * d_o[at_d_o.z + c] +
                    p.w * d_o[at_d_o.w + c];
      }
    }
  }

  if (first + lane > last) {
    return;
  }
  for (var c = 0u; c < VECTORS; c++) {
    var before_k = vec4<f32>();
    var before_v = vec4<f32>();
    if (params.more == 1u) {
      before_k = dk[row + c];
      before_v = dv[row + c];
    }
    dk[row + c] = before_k + sum_k[c] * params.scale;
    dv[row + c] = before_v + sum_v[c];
  }
}
