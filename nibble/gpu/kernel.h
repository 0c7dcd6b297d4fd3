#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>

#include <fmt/format.h>

namespace nibble::gpu {

// What varies between uses of one WGSL file: `enable` lines, named constants and type aliases, put before its text. WGSL
// allows module-scope names in any order, so the file stays valid WGSL but for these names.
class Prelude {
 public:
  Prelude& enable(std::string_view extension) {
    enables_ += fmt::format("enable {};\n", extension);
    return *this;
  }
  Prelude& alias(std::string_view name, std::string_view type) {
    text_ += fmt::format("alias {} = {};\n", name, type);
    return *this;
  }
  Prelude& constant(std::string_view name, std::unsigned_integral auto value) {
    if constexpr (std::same_as<decltype(value), bool>) {
      text_ += fmt::format("const {} = {};\n", name, value);
    } else {
      text_ += fmt::format("const {} = {}u;\n", name, value);
    }
    return *this;
  }
  // Written so that it reads back bit for bit.
  Prelude& constant(std::string_view name, float value) {
    text_ += fmt::format("const {} = f32({:.9g});\n", name, value);
    return *this;
  }
  // Any declarations, such as a table.
  Prelude& text(std::string_view declarations) {
    text_ += declarations;
    return *this;
  }
  std::string str() const { return enables_ + text_; }

 private:
  std::string enables_;
  std::string text_;
};

struct KernelState;

// A compiled compute pipeline, owned by its device. Binding 0 of group 0 is the uniform `params` (left out where there is
// none), the tensors follow from binding 1 on in the order of the dispatch.
class Kernel {
 public:
  explicit Kernel(KernelState* state = nullptr) : state_(state) {}
  KernelState& state() const { return *state_; }

 private:
  KernelState* state_;
};

}  // namespace nibble::gpu
