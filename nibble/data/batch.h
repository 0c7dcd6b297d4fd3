#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace nibble::data {

// A row as tokens; trained[i] says whether the loss counts the prediction of tokens[i]. A segment's first token is never
// trained, for nothing precedes it.
struct Example {
  std::vector<std::int32_t> tokens;
  std::vector<std::uint8_t> trained;
  // A preference has two segments that never see each other: the chosen chat, and from here on the rejected one. 0 for rows
  // of one segment.
  std::uint32_t rejected_begin = 0;

  bool is_pair() const { return rejected_begin > 0; }
};

// One stream of T tokens: the examples one after the other, never padded; of a preference both segments. Attention stays
// inside a segment.
struct Batch {
  std::vector<std::uint32_t> tokens;         // (T)
  std::vector<std::uint32_t> position;       // (T) begins at 0 in each segment
  std::vector<std::uint32_t> segment_begin;  // (T) first place of the token's segment in the stream
  std::vector<std::uint32_t> segment_end;    // (T) one behind its last place
  // For each of the R trained tokens: the place before it, itself, and which example it is of.
  std::vector<std::uint32_t> label_rows;
  std::vector<std::uint32_t> labels;
  std::vector<std::uint32_t> row_of_label;
  // Of P preferences: where the labels of the chosen and the rejected answers begin in turn, and their end (2P + 1). Empty
  // for rows of one segment.
  std::vector<std::uint32_t> sides;
  // Log-probabilities of a reference for these answers (2P), where whoever trains on the batch knows them.
  std::vector<float> reference;
  std::vector<std::uint64_t> rows;  // number of each example's line in its file, from 1; 0 where unknown
  std::vector<std::string> files;   // of each example, where whoever made the batch knows them
};

// `rows` may be empty. Throws UsageError where an example's vectors differ in length or where preferences are mixed with
// other rows, DataError where an example is empty, has a negative token, or is a preference with an answer without label.
Batch make_batch(std::span<const Example> examples, std::span<const std::uint64_t> rows = {});

}  // namespace nibble::data
