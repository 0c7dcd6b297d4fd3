#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/weights/lora_state.h"

// Private to weights: the keys of the one-file checkpoint, in the order in which it is written.
namespace nibble::json_checkpoint {

inline constexpr std::array<std::string_view, 7> header_keys{"step",        "rank",       "alpha", "loss",
                                                             "hidden_size", "num_layers", "layers"};
namespace header_key {
enum : std::size_t { step, rank, alpha, loss, hidden_size, num_layers, layers };
}

// By Projection.
inline constexpr std::array<std::string_view, 7> projection_keys{"q", "k", "v", "o", "gate", "up", "down"};

inline constexpr std::array<std::string_view, 9> adapter_keys{"a",   "b",    "m_a",    "v_a",    "m_b",
                                                              "v_b", "rank", "in_dim", "out_dim"};
namespace adapter_key {
enum : std::size_t { a, b, m_a, v_a, m_b, v_b, rank, in_dim, out_dim };
}

// The matrices behind the first six adapter_keys.
inline constexpr std::array<std::vector<float> LoraProjection::*, 6> matrices{
    &LoraProjection::a,   &LoraProjection::b,   &LoraProjection::m_a,
    &LoraProjection::v_a, &LoraProjection::m_b, &LoraProjection::v_b};

// How many values a matrix has: A and its moments rank * in_dim, B and its moments out_dim * rank.
inline std::size_t matrix_size(const LoraProjection& projection, std::size_t matrix) {
  const bool of_a = matrix == adapter_key::a || matrix == adapter_key::m_a || matrix == adapter_key::v_a;
  return std::size_t{projection.rank} * (of_a ? projection.in_dim : projection.out_dim);
}

// "layers[3].down.m_a"
inline std::string matrix_place(std::size_t layer, std::size_t projection, std::size_t matrix) {
  return "layers[" + std::to_string(layer) + "]." + std::string(projection_keys[projection]) + "." +
         std::string(adapter_keys[matrix]);
}

}  // namespace nibble::json_checkpoint
