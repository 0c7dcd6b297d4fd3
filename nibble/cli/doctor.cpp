#include "nibble/base/error.h"
#include "nibble/cli/command.h"
#include "nibble/cli/device_flags.h"
#include "nibble/cli/terminal.h"
#include "nibble/cli/tested_versions.h"
#include "nibble/gpu/disk_cache.h"
#include "nibble/io/json.h"
#include "nibble/kernels/product.h"
#include "nibble/kernels/self_test.h"
#include "nibble/report/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

namespace nibble::cli {
namespace {

struct DoctorFlags {
  std::string gpu;
  bool no_test = false, json = false;
};

struct Examination {
  gpu::AdapterInfo info;
  std::vector<std::string> toggles;
  std::vector<PathSelfTest> paths;
  std::string failure;  // where the adapter did not start

  bool passed() const {
    return failure.empty() &&
           std::all_of(paths.begin(), paths.end(), [](const PathSelfTest& path) { return path.passed(); });
  }
};

struct CacheUse {
  std::filesystem::path folder;
  std::uint64_t files = 0, bytes = 0;
};

Examination examine(const gpu::AdapterInfo& info, bool test) {
  Examination result{.info = info};
  try {
    gpu::Device device({.adapter = std::to_string(info.index)});
    result.toggles = device.toggles();
    if (test) result.paths = self_test(device);
  } catch (const DeviceError& error) {
    result.failure = error.what();
  }
  return result;
}

CacheUse cache_use() {
  CacheUse use{.folder = gpu::default_cache_dir()};
  if (!use.folder.empty()) use.folder /= "pipelines";  // as gpu::Device has it
  std::error_code error;
  for (std::filesystem::directory_iterator it(use.folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code entry_error;
    const auto size = it->file_size(entry_error);
    if (entry_error) continue;
    use.files += 1;
    use.bytes += size;
  }
  return use;
}

std::string matrices(const gpu::AdapterInfo& info) {
  std::vector<std::string> sizes;
  for (const auto& config : info.matrix_configs) sizes.push_back(fmt::format("{}x{}x{}", config.m, config.n, config.k));
  return fmt::format("{}", fmt::join(sizes, ", "));
}

std::string features(const gpu::AdapterInfo& info) {
  std::string text = info.f16 ? "f16" : "no f16";
  if (!info.subgroups) {
    text += ", no subgroups";
  } else if (info.subgroup_min_size == info.subgroup_max_size) {
    text += fmt::format(", subgroups of {}", info.subgroup_min_size);
  } else {
    text += fmt::format(", subgroups of {} to {}", info.subgroup_min_size, info.subgroup_max_size);
  }
  text += info.matrix_configs.empty() ? ", no subgroup matrices" : fmt::format(", subgroup matrices {}", matrices(info));
  return text + (info.timestamps ? ", timestamps" : ", no timestamps");
}

void print_row(std::string_view what, std::string_view value) { fmt::print("   {:<11} {}\n", what, printable(value)); }

// Words separated by commas, in lines of at most 100 characters.
void print_words(std::string_view what, const std::vector<std::string>& words) {
  std::string line;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (!line.empty() && line.size() + words[i].size() > 100) {
      print_row(what, std::string_view(line).substr(0, line.size() - 1));
      what = "";
      line.clear();
    }
    line += words[i] + (i + 1 < words.size() ? ", " : "");
  }
  print_row(what, line.empty() ? "none" : line);
}

void print_path(const PathSelfTest& path, bool chosen) {
  const std::string label(name_of(path.path));
  if (!path.failure.empty()) return print_row(label, fmt::format("FAILED: {}", path.failure));
  const double gflops = path.flops_per_second * 1e-9;
  const std::string speed =
      gflops >= 10000 ? fmt::format("{:.1f} TFLOP/s", gflops * 1e-3) : fmt::format("{:.1f} GFLOP/s", gflops);
  print_row(label, fmt::format("{:<7} {:>14}{}{}", path.passed() ? "correct" : "WRONG", speed,
                               chosen ? ", chosen by --compute auto" : "",
                               path.keeps_subnormals ? "" : ", takes f16 subnormals for zero"));
  for (const SelfCheck& check : path.checks) {
    if (!check.passed()) print_row("", fmt::format("{}: {:.3g}, allowed {:.3g}", check.what, check.error, check.allowed));
  }
}

void print(const Examination& found, bool tested) {
  const auto& info = found.info;
  fmt::print("{}: {} ({}, {})\n", info.index, printable(info.name), gpu::name_of(info.type), info.backend);
  print_row("driver", info.driver);
  print_row("features", features(info));
  print_row("memory", info.memory_bytes ? human_bytes(info.memory_bytes) : "not told by the driver");
  print_row("limits", fmt::format("buffer {}, binding {}, workgroup {} and {} threads, {} workgroups a dimension",
                                  human_bytes(info.limits.max_buffer), human_bytes(info.limits.max_binding),
                                  human_bytes(info.limits.workgroup_storage), grouped(info.limits.workgroup_invocations),
                                  grouped(info.limits.workgroups_per_dimension)));
  if (!found.failure.empty()) return print_row("FAILED", found.failure);
  print_words("toggles", found.toggles);
  if (!tested) print_row("products", fmt::format("{}, chosen by --compute auto; not tested", name_of(fastest_path(info))));
  for (const auto& path : found.paths) print_path(path, path.path == fastest_path(info));
}

Json to_json(const PathSelfTest& path, const gpu::AdapterInfo& info) {
  Json checks = Json::array();
  for (const auto& check : path.checks) {
    checks.push_back({{"what", check.what},
                      {"error", std::isfinite(check.error) ? Json(check.error) : Json()},
                      {"allowed", check.allowed},
                      {"passed", check.passed()}});
  }
  return {{"compute", name_of(path.path)},
          {"passed", path.passed()},
          {"failure", path.failure},
          {"chosen", path.path == fastest_path(info)},
          {"keeps_f16_subnormals", path.keeps_subnormals},
          {"gflops", path.flops_per_second * 1e-9},
          {"checks", checks}};
}

Json to_json(const Examination& found) {
  const auto& info = found.info;
  Json sizes = Json::array(), paths = Json::array();
  for (const auto& config : info.matrix_configs) sizes.push_back({config.m, config.n, config.k});
  for (const auto& path : found.paths) paths.push_back(to_json(path, info));
  return {{"index", info.index},
          {"name", info.name},
          {"type", gpu::name_of(info.type)},
          {"backend", info.backend},
          {"driver", info.driver},
          {"f16", info.f16},
          {"subgroups", info.subgroups},
          {"subgroup_sizes", {info.subgroup_min_size, info.subgroup_max_size}},
          {"subgroup_matrices", sizes},
          {"timestamps", info.timestamps},
          {"memory_bytes", info.memory_bytes},
          {"limits",
           {{"buffer_bytes", info.limits.max_buffer},
            {"binding_bytes", info.limits.max_binding},
            {"workgroup_bytes", info.limits.workgroup_storage},
            {"workgroup_threads", info.limits.workgroup_invocations},
            {"workgroups_per_dimension", info.limits.workgroups_per_dimension}}},
          {"toggles", found.toggles},
          {"compute", name_of(fastest_path(info))},
          {"failure", found.failure},
          {"paths", paths}};
}

void print_versions() {
  std::vector<std::string> versions;
  for (const auto& tested : kTestedVersions) versions.push_back(fmt::format("{} {}", tested.package, tested.version));
  fmt::print("\nTested with\n");
  print_words("", versions);
}

void print_json(const std::vector<Examination>& all, const CacheUse& cache) {
  Json adapters = Json::array(), versions = Json::object();
  for (const auto& found : all) adapters.push_back(to_json(found));
  for (const auto& tested : kTestedVersions) versions[std::string(tested.package)] = tested.version;
  fmt::print("{}\n", write_json({{"version", NIBBLE_VERSION},
                                 {"adapters", adapters},
                                 {"cache",
                                  {{"folder", cache.folder.string()}, {"files", cache.files}, {"bytes", cache.bytes}}},
                                 {"tested_versions", versions}}));
}

// Every adapter, or the one that the option names.
std::vector<gpu::AdapterInfo> chosen_adapters(const std::string& wanted) {
  auto infos = gpu::list_adapters();
  check<DeviceError>(!infos.empty(), "doctor",
                     "No GPU was found, not even a software one: install your GPU's Vulkan driver, or Debian's "
                     "mesa-vulkan-drivers to compute on the processor.");
  if (!wanted.empty()) infos = {gpu::Device({.adapter = wanted}).info()};
  return infos;
}

int run(const DoctorFlags& flags) {
  const auto infos = chosen_adapters(flags.gpu);
  std::vector<Examination> all;
  if (!flags.json) fmt::print("nibble {}\n\nAdapters, best first\n", NIBBLE_VERSION);
  for (const auto& info : infos) {
    all.push_back(examine(info, !flags.no_test));
    if (!flags.json) print(all.back(), !flags.no_test);
    std::fflush(stdout);
  }
  const CacheUse cache = cache_use();
  if (flags.json) {
    print_json(all, cache);
  } else {
    fmt::print("\nCache of compiled kernels\n");
    print_row("", cache.folder.empty()
                      ? "none: HOME is not set"
                      : fmt::format("{}: {} files, {}", cache.folder.string(), cache.files, human_bytes(cache.bytes)));
    print_versions();
  }
  const bool passed = std::all_of(all.begin(), all.end(), [](const Examination& found) { return found.passed(); });
  return passed ? exit_done : exit_device;
}

}  // namespace

void add_doctor(CLI::App& app, Action& action) {
  auto flags = std::make_shared<DoctorFlags>();
  CLI::App* verb = app.add_subcommand(
      "doctor", "Says what each GPU can do, and tests that it computes correctly and how fast.\n"
                "Every way of doing products that an adapter has is compared with the processor in double precision.\n"
                "The exit code is 3 where one is wrong or no adapter is found.");
  verb->add_option("--gpu,--adapter", flags->gpu, "Only this one: its index or a part of its name");
  verb->add_flag("--no-test", flags->no_test, "List only");
  verb->add_flag("--json", flags->json, "Print as JSON");
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
