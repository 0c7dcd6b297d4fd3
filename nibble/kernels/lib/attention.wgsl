// What the attention kernels share. Tensors are read as vectors of 4; a head's row has VECTORS of them.
// Prelude: HEAD_DIM, a multiple of 16.

struct Params {
  tokens: u32,       // rows of a head in q, dq, lse and delta
  capacity: u32,     // rows of a head in k, v, dk and dv
  heads: u32,        // all query heads: the width of o and d_o
  group: u32,        // query heads that share a key head
  first_head: u32,   // first query head of the slices of q and dq; those of k and v begin at first_head / group
  first_token: u32,  // first token of the slices of o and d_o
  last_token: u32,   // and the one after their last
  more: u32,         // key gradients: 1 adds to dk and dv, 0 begins them
  scale: f32,        // 1 / sqrt(HEAD_DIM)
  parts: u32,        // decode: that a query's keys are cut into
  part_keys: u32,    // and keys of each
  eps: f32,          // step: of the norms
}

@group(0) @binding(0) var<uniform> params: Params;

const VECTORS = HEAD_DIM / 4u;
const LOWEST = -1e30;  // a score that is none

// First vector of a (token, head) row in the slices of o and d_o; `head` counts from the slice's first.
fn token_row(token: u32, head: u32) -> u32 {
  return ((token - params.first_token) * params.heads + params.first_head + head) * VECTORS;
}

// First vector of head 0's rows for a query head of the slice.
fn key_rows(head: u32) -> u32 {
  return head / params.group * params.capacity * VECTORS;
}

// Element of lse and delta.
fn query_entry(query: u32, head: u32) -> u32 {
  return (params.first_head + head) * params.tokens + query;
}

// Row of what a part of a query's keys left for a head of the slice.
fn part_row(query: u32, part: u32, head: u32) -> u32 {
  return (query * params.parts + part) * params.heads + params.first_head + head;
}
