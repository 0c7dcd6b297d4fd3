#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

#include "nibble/base/dtype.h"

// Private to io: the types that the format knows, in its own order, which the order of a written file follows.
namespace nibble {

struct FileDType {
  std::string_view name;
  std::size_t bits;
  std::optional<DType> dtype;
};

inline constexpr std::array<FileDType, 22> file_dtypes{{
    {"BOOL", 8, {}},         {"F4", 4, {}},           {"F6_E2M3", 6, {}},        {"F6_E3M2", 6, {}},
    {"U8", 8, DType::u8},    {"I8", 8, {}},           {"F8_E5M2", 8, {}},        {"F8_E4M3", 8, {}},
    {"F8_E8M0", 8, {}},      {"F8_E4M3FNUZ", 8, {}},  {"F8_E5M2FNUZ", 8, {}},    {"I16", 16, {}},
    {"U16", 16, {}},         {"F16", 16, DType::f16}, {"BF16", 16, DType::bf16}, {"I32", 32, DType::i32},
    {"U32", 32, DType::u32}, {"F32", 32, DType::f32}, {"C64", 64, {}},           {"F64", 64, {}},
    {"I64", 64, DType::i64}, {"U64", 64, {}},
}};

}  // namespace nibble
