#pragma once

#include "nibble/io/safetensors.h"
#include "nibble/model/parity.h"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// Rows of a golden file without their padding, one segment each.
struct GoldenRows {
  std::vector<std::uint32_t> tokens, position, segment_begin, segment_end, label_rows, labels;
  std::uint32_t first_row_tokens = 0;
  std::vector<std::uint32_t> sides;  // of pairs, see data::Batch

  TokenStream stream() const {
    return {.tokens = tokens, .position = position, .segment_begin = segment_begin, .segment_end = segment_end,
            .label_rows = label_rows, .labels = labels};
  }
};

// The rows of input_ids, labels and attention_mask. Throws DataError where they do not fit each other.
GoldenRows read_golden_rows(const SafetensorsFile& golden);

// Whether the file holds pairs of answers: chosen.* and rejected.*.
bool holds_preferences(const SafetensorsFile& golden);
// Their rows, the chosen and the rejected one of each pair in turn.
GoldenRows read_golden_pairs(const SafetensorsFile& golden);

double relative_error(std::span<const float> ours, std::span<const float> reference);  // ||a - b|| / ||b||, infinite for NaN
double cosine(std::span<const float> ours, std::span<const float> reference);          // -1 for NaN

// Each tensor PREFIX<peft name> of the file against the adapter's gradient, and lm_head.weight against `d_head`, in the
// file's order. Throws DataError where the file holds none or one that does not fit.
std::vector<GradientParity> compare_gradients(Model& model, const Tensor& d_head, const SafetensorsFile& golden,
                                              std::string_view prefix);

}  // namespace nibble
