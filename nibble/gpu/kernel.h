#pragma once

#include <charconv>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace nibble::gpu {

// What varies between uses of one WGSL file: `enable` lines, named constants and type aliases, put before its text. WGSL
// allows module-scope names in any order, so the file stays valid WGSL but for these names.
class Prelude {
 public:
  Prelude& enable(std::string_view extension) {
    return append(enables_, {"enable ", extension, ";\n"});
  }
  Prelude& alias(std::string_view name, std::string_view type) {
    return append(text_, {"alias ", name, " = ", type, ";\n"});
  }
  Prelude& constant(std::string_view name, std::unsigned_integral auto value) {
    if constexpr (std::same_as<decltype(value), bool>) {
      return append(text_, {"const ", name, " = ", value ? "true" : "false", ";\n"});
    } else {
      return append(text_, {"const ", name, " = ", Digits(value).view(), "u;\n"});
    }
  }
  // Written so that it reads back bit for bit.
  Prelude& constant(std::string_view name, float value) {
    return append(text_, {"const ", name, " = f32(", Digits(value).view(), ");\n"});
  }
  // Any declarations, such as a table.
  Prelude& text(std::string_view declarations) {
    text_ += declarations;
    return *this;
  }
  std::string str() const { return enables_ + text_; }
  const std::string& enables() const { return enables_; }
  const std::string& declarations() const { return text_; }

 private:
  // Preludes are made for each dispatch, so they are put together without a format string. The shortest text that reads back
  // as the same value.
  class Digits {
   public:
    explicit Digits(auto value) : end_(std::to_chars(text_, text_ + sizeof text_, value).ptr) {}
    std::string_view view() const { return {text_, end_}; }

   private:
    char text_[32];
    char* end_;
  };
  Prelude& append(std::string& to, std::initializer_list<std::string_view> parts) {
    for (const std::string_view part : parts) to += part;
    return *this;
  }

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
