#include "nibble/cli/bench.h"

#include "nibble/cli/build_info.h"
#include "nibble/cli/usage.h"
#include "nibble/io/atomic.h"
#include "nibble/weights/shapes.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>

namespace nibble::cli {
namespace {

struct KnownCard {
  std::string_view name;
  double tflops, gbs;
};

// Tensor rates are dense, of f16 operands with f32 sums. A card that differs by its form has its longer name first.
constexpr KnownCard known_cards[] = {
    {"H200", 989, 4800},      {"H100 PCIe", 756, 2039}, {"H100", 989, 3352},      {"A100-SXM4-80GB", 312, 2039},
    {"A100 80GB", 312, 1935}, {"A100", 312, 1555},      {"L40S", 362, 864},       {"RTX 4090", 165, 1008},
    {"RTX 4080", 97.5, 717},  {"RTX 4070", 58, 504},    {"RTX 3090 Ti", 80, 1008}, {"RTX 3090", 71, 936},
    {"RTX 3080", 59.5, 760},  {"RTX 3060", 25.5, 360},
};

double batch_seconds(gpu::Device& device, const std::function<void(gpu::Recorder&)>& record, int count) {
  const auto begin = std::chrono::steady_clock::now();
  gpu::Recorder recorder(device);
  for (int i = 0; i < count; ++i) record(recorder);
  recorder.submit();
  device.wait("bench");
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

Json positive_or_null(double value) { return value > 0 ? Json(value) : Json(); }

}  // namespace

double Peaks::seconds(double flops_done, double bytes_moved) const {
  return std::max(flops > 0 ? flops_done / flops : 0.0, bytes > 0 ? bytes_moved / bytes : 0.0);
}

Peaks known_peaks(std::string_view adapter_name) {
  for (const KnownCard& card : known_cards) {
    if (adapter_name.find(card.name) != adapter_name.npos) return {.flops = card.tflops * 1e12, .bytes = card.gbs * 1e9};
  }
  return {};
}

void BenchFlags::add_to(CLI::App& verb) {
  verb.add_option("--json", json, "File for the results as JSON; - is standard output, and the table then goes to standard error");
  verb.add_option("--peak-tflops", peak_tflops, "The card's peak of f16 products, where nibble does not know it")
      ->check(above_zero());
  verb.add_option("--peak-gbs", peak_gbs, "The card's memory bandwidth in GB/s, where nibble does not know it")
      ->check(above_zero());
  verb.add_option("--toggle", device.toggles,
                  "Toggle of Dawn, by Dawn's name, over nibble's own; \"no NAME\" turns one off. May be given several times")
      ->allow_extra_args(false);
  device.add_to(verb, DeviceFlags::AdapterOption::names_gpu);
}

Peaks BenchFlags::peaks(const gpu::AdapterInfo& info) const {
  Peaks peaks = known_peaks(info.name);
  if (peak_tflops > 0) peaks.flops = peak_tflops * 1e12;
  if (peak_gbs > 0) peaks.bytes = peak_gbs * 1e9;
  return peaks;
}

void ShapeFlags::add_to(CLI::App& verb) {
  auto* shape = verb.add_option("--shape", name, "qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b, qwen3-14b, qwen3-32b or qwen3-30b-a3b")->capture_default_str();
  verb.add_option("--model", model, "Model folder whose config.json gives the sizes instead")->excludes(shape);
}

ModelConfig ShapeFlags::config() const { return model.empty() ? shape_by_name(name) : read_model_config(model); }

Spread spread_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {.median = seconds[seconds.size() / 2], .min = seconds.front(), .max = seconds.back(), .repeats = seconds.size()};
}

Spread measure(gpu::Device& device, std::uint32_t repeats, const std::function<void(gpu::Recorder&)>& record) {
  double once = batch_seconds(device, record, 1);
  for (double warm = 0; warm < 0.4;) {
    const int count = std::clamp(static_cast<int>(0.05 / once), 1, 500);
    const double spent = batch_seconds(device, record, count);
    once = spent / count;
    warm += spent;
  }
  const int count = std::clamp(static_cast<int>(0.1 / once), 1, 1000);
  std::vector<double> seconds;
  for (std::uint32_t i = 0; i < repeats; ++i) seconds.push_back(batch_seconds(device, record, count) / count);
  return spread_of(std::move(seconds));
}

void put_rates(Json& row, const Spread& seconds, double flops, double bytes, const Peaks& peaks) {
  row["seconds"] = {{"median", seconds.median}, {"min", seconds.min}, {"max", seconds.max}, {"repeats", seconds.repeats}};
  row["tflops"] = flops / seconds.median * 1e-12;
  row["gbs"] = positive_or_null(bytes / seconds.median * 1e-9);
  row["share_of_peak"] = positive_or_null(peaks.seconds(flops, bytes) / seconds.median);
}

Json print_kernels(std::FILE* out, std::span<const gpu::ProfileRow> rows, const Peaks& peaks) {
  Json kernels = Json::array();
  if (rows.empty()) return kernels;
  gpu::ProfileRow all;
  for (const auto& row : rows) all.seconds += row.seconds;
  fmt::print(out, "{:<34} {:>7} {:>9} {:>6} {:>8} {:>8} {:>9} {:>6}\n", "kernel", "calls", "ms", "%", "GB/s", "TFLOP/s",
             "bound ms", "of it");
  const auto print = [&](std::string_view label, const gpu::ProfileRow& row, double bound) {
    fmt::print(out, "{:<34} {:>7} {:>9.3f} {:>6.1f} {:>8.0f} {:>8.2f} {:>9} {:>6}\n", label, row.count, row.seconds * 1e3,
               100 * row.seconds / all.seconds, row.bytes / row.seconds * 1e-9, row.flops / row.seconds * 1e-12,
               bound > 0 ? fmt::format("{:.3f}", bound * 1e3) : "?",
               bound > 0 ? fmt::format("{:.0f}%", 100 * bound / row.seconds) : "?");
  };
  double all_bound = 0;
  for (const auto& row : rows) {
    const double bound = peaks.seconds(row.flops, row.bytes);
    print(row.label, row, bound);
    kernels.push_back({{"kernel", row.label},
                       {"calls", row.count},
                       {"seconds", row.seconds},
                       {"share", row.seconds / all.seconds},
                       {"gbs", row.bytes / row.seconds * 1e-9},
                       {"tflops", row.flops / row.seconds * 1e-12},
                       {"bound_seconds", bound > 0 ? Json(bound) : Json()}});
    all.count += row.count;
    all.bytes += row.bytes;
    all.flops += row.flops;
    all_bound += bound;
  }
  print("all", all, all_bound);
  return kernels;
}

std::vector<gpu::ProfileRow> profile_of_each(std::vector<gpu::ProfileRow> rows, std::span<const gpu::ProfileRow> before) {
  for (gpu::ProfileRow& row : rows) {
    const auto first = std::find_if(before.begin(), before.end(), [&](const auto& r) { return r.label == row.label; });
    const gpu::ProfileRow sums = first == before.end() ? gpu::ProfileRow{} : *first;
    const auto calls = static_cast<double>(row.count - sums.count);
    row = {.label = row.label, .count = row.count > sums.count ? 1u : 0u, .seconds = (row.seconds - sums.seconds) / calls,
           .bytes = (row.bytes - sums.bytes) / calls, .flops = (row.flops - sums.flops) / calls};
  }
  std::erase_if(rows, [](const gpu::ProfileRow& row) { return row.count == 0; });
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  return rows;
}

BenchReport::BenchReport(std::string benchmark, const BenchFlags& flags, Json settings) : flags_(flags) {
  head_ = {{"tool", "nibble"},
           {"version", NIBBLE_VERSION},
           {"commit", build_commit()},
           {"date", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
           {"benchmark", std::move(benchmark)},
           {"settings", std::move(settings)}};
}

void BenchReport::begin(const gpu::Device& device, ProductPath path) {
  if (std::exchange(begun_, true)) return;
  const gpu::AdapterInfo& info = device.info();
  const Peaks peaks = flags_.peaks(info);
  head_["device"] = {{"name", info.name},
                     {"type", gpu::name_of(info.type)},
                     {"driver", info.driver},
                     {"backend", info.backend},
                     {"toggles", device.toggles()}};
  head_["compute"] = name_of(path);
  head_["peaks"] = {{"tflops", positive_or_null(peaks.flops * 1e-12)}, {"gbs", positive_or_null(peaks.bytes * 1e-9)}};
  fmt::print(table(), "{}\n", describe(info, path));
}

std::FILE* BenchReport::table() const { return flags_.json == "-" ? stderr : stdout; }

void BenchReport::finish() const {
  if (flags_.json.empty()) return;
  Json report = head_;
  report["rows"] = rows_;
  const std::string text = write_json(report) + "\n";
  if (flags_.json == "-") {
    fmt::print("{}", text);
  } else {
    write_file_atomically(flags_.json, text);
  }
}

void add_bench(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("bench", "Measures this GPU.");
  verb->require_subcommand(1);
  add_bench_step(*verb, action);
  add_bench_matmul(*verb, action);
  add_bench_attention(*verb, action);
  add_bench_generate(*verb, action);
  add_bench_load(*verb, action);
}

}  // namespace nibble::cli
