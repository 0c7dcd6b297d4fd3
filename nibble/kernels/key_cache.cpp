#include "nibble/kernels/key_cache.h"

#include "nibble/base/error.h"

namespace nibble {

void declare_keys(gpu::Prelude& prelude, const Tensor& keys) {
  const bool half = keys.dtype() == DType::f16;
  if (half) prelude.enable("f16");
  prelude.alias("K", half ? "vec4<f16>" : "vec4<f32>").constant("MOST_KEY", half ? 65504.0f : 3e38f);
}

void expect_keys(const Tensor& k, const Tensor& v, std::string_view where) {
  check(k && v && k.rank() == 3 && k.shape_text() == v.shape_text(), where, "Keys and values do not match.");
  check(k.dtype() == v.dtype() && (k.dtype() == DType::f32 || k.dtype() == DType::f16), where, "Keys are {} and values {}; both must be f32 or f16.",
        name_of(k.dtype()), name_of(v.dtype()));
}

}  // namespace nibble
