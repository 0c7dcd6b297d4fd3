#pragma once

#include "nibble/kernels/operand.h"

#include <optional>

namespace nibble {

// How attention is spread over the adapter; the variants differ in speed and rounding alone.
enum class AttentionVariant {
  rows,         // an invocation a row, no workgroup memory: for software adapters
  tiles,        // workgroups share tiles of 64 rows and columns: for GPUs
  small_tiles,  // of 32: for GPUs with little workgroup memory
  decode,       // a workgroup a (query, key head, part of the keys): for few queries; forward only
};

// Up to so many queries take `decode`.
constexpr std::uint32_t most_decode_queries = 8;

// Room for what parts of the keys leave: without it `decode` takes a query's keys in one part. Where there are many, parts
// occupy a GPU with few queries.
constexpr std::uint32_t attention_part_rows = 64;
struct AttentionParts {
  Tensor o;        // (attention_part_rows, H * D)
  Tensor numbers;  // (attention_part_rows, H, 2)
};

// Causal attention with grouped heads and running softmax; no matrix of scores in memory. Query head h reads key head
// h / (H / Hk), and query i the keys j of [key_begin[i], key_end[i]):
//   s_ij = q_i . k_j / sqrt(D),  lse_i = log sum_j exp(s_ij),  o_i = sum_j exp(s_ij - lse_i) v_j
// All f32 but the bounds (u32), and k and v, which may be f16. Each query meets at least one key; both bounds never fall from one query to the next.
// D is a multiple of 16 from 16 to 256. Writes `=`.
struct Attention {
  Tensor q;                   // (H, Tq, D)
  Tensor k, v;                // (Hk, capacity, D)
  Tensor key_begin, key_end;  // (Tq); training: the segment's begin and i + 1
  Tensor o;                   // (Tq, H * D)
  Tensor lse;                 // (H, Tq)
  std::uint64_t pairs = 0;    // sum of key_end - key_begin, for the profile; 0: of one segment
  std::optional<AttentionVariant> variant;  // for tests; empty: by the adapter
  AttentionParts parts = {};
  std::uint32_t most_keys = 0;        // that a query meets; with `parts`
  std::uint32_t least_part_keys = 0;  // of a part, a multiple of 32; for tests; 0: by the adapter
};
void record(gpu::Recorder& recorder, const Attention& op);

// Gradients of q, k and v, given d_o, where queries and keys are the same T tokens: key j is met by the queries of
// [j, query_end[j]). With p_ij = exp(s_ij - lse_i):
//   delta_i = o_i . d_o_i,  ds_ij = p_ij (d_o_i . v_j - delta_i) / sqrt(D)
//   dq_i = sum_j ds_ij k_j,  dk_j = sum_i ds_ij q_i,  dv_j = sum_i p_ij d_o_i
// The heads of a group are summed in their order. Writes `=`.
struct AttentionBackward {
  Tensor q;                              // (H, T, D)
  Tensor k, v;                           // (Hk, capacity, D)
  Tensor key_begin, key_end, query_end;  // (T); query_end: the segment's end
  Tensor o, d_o;                         // (T, H * D)
  Tensor lse;                            // (H, T), of the forward
  Tensor delta;                          // (H, T), scratch
  Tensor dq;                             // (H, T, D)
  Tensor dk, dv;                         // (Hk, capacity, D); rows from T on stay as they are
  std::uint64_t pairs = 0;
  std::optional<AttentionVariant> variant;
};
void record(gpu::Recorder& recorder, const AttentionBackward& op);

}  // namespace nibble
