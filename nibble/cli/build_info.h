#pragma once

#include <string_view>

namespace nibble::cli {

// The commit that this program was built from: "a1b2c3d4e5f6", with "+changes" where files differed from it, or "unknown".
std::string_view build_commit();

}  // namespace nibble::cli
