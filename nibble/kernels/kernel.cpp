#include "nibble/kernels/kernel.h"

#include "nibble/base/error.h"

#include <cstdlib>
#include <fstream>
#include <iterator>

namespace nibble {
namespace {

std::string wgsl_text(std::string_view name) {
  if (const char* folder = std::getenv("NIBBLE_WGSL_DIR")) {
    std::ifstream file(fmt::format("{}/{}.wgsl", folder, name));
    check(static_cast<bool>(file), name, "The file is not in NIBBLE_WGSL_DIR ({}).", folder);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  const auto& texts = detail::embedded_wgsl();
  const auto found = texts.find(name);
  check(found != texts.end(), name, "The kernel is not listed in nibble/kernels/CMakeLists.txt.");
  return std::string(found->second);
}

}  // namespace

gpu::Kernel kernel(gpu::Device& device, std::string_view file, const gpu::Prelude& prelude,
                   std::initializer_list<std::string_view> libs, std::string_view entry) {
  const std::string head = prelude.str();
  std::string key = fmt::format("{}:{}\n{}", file, entry, head);
  for (const auto lib : libs) key += fmt::format("\n{}", lib);
  return device.kernel(key, fmt::format("{}:{}", file, entry), entry, [&] {
    std::string text = head;
    for (const auto lib : libs) text += wgsl_text(fmt::format("lib/{}", lib));
    return text + wgsl_text(file);
  });
}

}  // namespace nibble
