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
  // Looked up for each dispatch.
  std::string key;
  key.reserve(512);
  for (const std::string_view part : {file, std::string_view(":"), entry}) key += part;
  const std::size_t label_size = key.size();
  for (const std::string_view part : {std::string_view("\n"), std::string_view(prelude.enables()),
                                      std::string_view(prelude.declarations())}) {
    key += part;
  }
  for (const auto lib : libs) (key += '\n') += lib;
  return device.kernel(key, std::string_view(key).substr(0, label_size), entry, [&] {
    std::string text = prelude.str();
    for (const auto lib : libs) text += wgsl_text(fmt::format("lib/{}", lib));
    return text + wgsl_text(file);
  });
}

}  // namespace nibble
