#include "nibble/cli/device_flags.h"

#include "nibble/base/error.h"
#include "nibble/gpu/disk_cache.h"
#include "nibble/kernels/product.h"
#include "nibble/model/tuning_file.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

namespace nibble::cli {

void DeviceFlags::add_to(CLI::App& verb, AdapterOption adapter_option) {
  verb.add_option(adapter_option == AdapterOption::names_gpu ? "--gpu,--adapter" : "--gpu", gpu,
                  "GPU to use: its index or a part of its name, as `nibble doctor` lists them");
  verb.add_option("--compute", compute,
                  "How products are done: matrix (subgroup matrices), f16 (f16 vectors), f32, or auto for the adapter's best")
      ->check(CLI::IsMember({"auto", "matrix", "f16", "f32"}))
      ->capture_default_str();
  verb.add_flag("--profile", profile, "Time every kernel and print a table at the end");
}

gpu::Device DeviceFlags::open() const {
  std::error_code ignored;
  check<UsageError>(gpu.empty() || !std::filesystem::exists(std::filesystem::path(gpu) / "adapter_config.json", ignored), "--gpu",
                    "\"{}\" is an adapter's folder, and --adapter stands for --gpu here; training begins with an adapter by --init-adapter.", gpu);
  gpu::Device device({.adapter = gpu, .profile = profile, .toggles = toggles});
  load_matrix_tuning(device, gpu::default_cache_dir());
  return device;
}

ProductPath DeviceFlags::path(const gpu::AdapterInfo& info) const {
  if (compute == "auto") return fastest_path(info);
  const ProductPath wanted = compute == "matrix" ? ProductPath::matrix
                             : compute == "f16"  ? ProductPath::f16
                                                 : ProductPath::f32;
  check<UsageError>(supports(info, wanted), "--compute", "{} cannot compute with \"{}\"; `nibble doctor` lists what it can.",
                    info.name, compute);
  return wanted;
}

std::string_view name_of(ProductPath path) {
  switch (path) {
    case ProductPath::matrix: return "matrix";
    case ProductPath::f16: return "f16";
    case ProductPath::f32: return "f32";
  }
  return "?";
}

std::string describe(const gpu::AdapterInfo& info, ProductPath path) {
  std::string_view products = "products in f32";
  if (path == ProductPath::f16) products = "products in f16 vectors";
  if (path == ProductPath::matrix) products = "products by subgroup matrices";
  return fmt::format("{} ({}, {}), {}", info.name, gpu::name_of(info.type), info.backend, products);
}

void print_profile(gpu::Device& device) {
  const auto rows = device.profile();
  if (rows.empty()) return;
  double total = 0;
  for (const auto& row : rows) total += row.seconds;
  fmt::print(stderr, "{:<44} {:>8} {:>10} {:>6} {:>9} {:>9}\n", "kernel", "count", "ms", "%", "GB/s", "GFLOP/s");
  for (const auto& row : rows) {
    fmt::print(stderr, "{:<44} {:>8} {:>10.2f} {:>6.1f} {:>9.1f} {:>9.1f}\n", row.label, row.count, row.seconds * 1e3,
               100 * row.seconds / total, row.bytes / row.seconds * 1e-9, row.flops / row.seconds * 1e-9);
  }
  fmt::print(stderr, "{:<44} {:>8} {:>10.2f}\n", "all", "", total * 1e3);
}

}  // namespace nibble::cli
