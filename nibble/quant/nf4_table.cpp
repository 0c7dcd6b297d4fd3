#include "nibble/quant/nf4_table.h"

#include <fmt/format.h>

#include <vector>

namespace nibble {

std::string nf4_wgsl_table() {
  std::vector<std::string> values;
  // Nine significant digits name each f32 uniquely; WGSL rounds a literal to the nearest one.
  for (const float value : nf4_values) values.push_back(fmt::format("{:.9g}f", value));
  return fmt::format("const nf4_values = array<f32, 16>({});\n", fmt::join(values, ", "));
}

}  // namespace nibble
