#pragma once

#include "nibble/kernels/operand.h"

#include <string>
#include <vector>

namespace nibble {

// One comparison of the device with the host.
struct SelfCheck {
  std::string what;
  double error = 0, allowed = 0;
  bool passed() const { return error <= allowed; }  // not where error is NaN
};

struct PathSelfTest {
  ProductPath path;
  std::vector<SelfCheck> checks;
  std::string failure;         // what the device reported, where it did
  bool keeps_subnormals = true;  // of f16; products work either way
  double flops_per_second = 0;   // of a large product
  bool passed() const;
};

// Runs each product path that the adapter has: both products and a chain (norm, product, LoRA) against double on the host,
// f16 conversions against IEEE where the path uses them, then the speed of a product as large as a layer's. Drivers' f16 is
// not always tested by their makers. About a second a path.
std::vector<PathSelfTest> self_test(gpu::Device& device);

}  // namespace nibble
