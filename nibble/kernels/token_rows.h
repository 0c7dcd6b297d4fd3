#pragma once

#include "nibble/kernels/operand.h"

// Some rows of the embedding and the head, those of trained tokens: writing them into the tables that gathers and products read, and
// their gradients. `ids` are distinct and below the table's rows.
namespace nibble {

// table[ids[i]] = rows[i], rounded to the table's type; its other rows stay.
struct WriteTokenRows {
  Tensor rows;   // (n, C) f32
  Tensor ids;    // (n) u32
  Weight table;  // (V, C), written
};
void record(gpu::Recorder& recorder, const WriteTokenRows& op);

// The backward pass of the gather x[t] = table[tokens[t]] for some of its rows: d_rows[i] += sum over t with tokens[t] = ids[i] of
// dx[t], in the order of t.
struct EmbeddingBackward {
  Tensor tokens;  // (T) u32
  Tensor dx;      // (T, C) f32
  Tensor ids;     // (n) u32
  Tensor d_rows;  // (n, C) f32
};
void record(gpu::Recorder& recorder, const EmbeddingBackward& op);

// The gradient of some rows of the head, logits = normed head^T: d_rows[i] += sum over r of d_logits[r, ids[i]] * normed[r], in the
// order of r.
struct HeadRowsBackward {
  Operand d_logits;  // (R, V)
  Operand normed;    // (R, C)
  Tensor ids;        // (n) u32
  Tensor d_rows;     // (n, C) f32
};
void record(gpu::Recorder& recorder, const HeadRowsBackward& op);

}  // namespace nibble
