#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// Of a kernel that meets keys and values, which are f32 or, in caches, f16: K is the type of four of them, and MOST_KEY the largest
// value, which larger ones are cut to when they are put there.
void declare_keys(gpu::Prelude& prelude, const Tensor& keys);

// Throws unless keys and values are of one shape and of either type.
void expect_keys(const Tensor& k, const Tensor& v, std::string_view where);

}  // namespace nibble
