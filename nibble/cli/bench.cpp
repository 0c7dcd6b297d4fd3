#include "nibble/cli/bench.h"

#include "nibble/cli/build_info.h"
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
      ->check(CLI::PositiveNumber);
  verb.add_option("--peak-gbs", peak_gbs, "The card's memory bandwidth in GB/s, where nibble does not know it")
      ->check(CLI::PositiveNumber);
  device.add_to(verb, DeviceFlags::AdapterOption::names_gpu);
}

Peaks BenchFlags::peaks(const gpu::AdapterInfo& info) const {
  Peaks peaks = known_peaks(info.name);
  if (peak_tflops > 0) peaks.flops = peak_tflops * 1e12;
  if (peak_gbs > 0) peaks.bytes = peak_gbs * 1e9;
  return peaks;
}

void ShapeFlags::add_to(CLI::App& verb) {
  auto* shape = verb.add_option("--shape", name, "qwen3-0.6b, qwen3-1.7b, qwen3-4b or qwen3-8b")->capture_default_str();
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
}

}  // namespace nibble::cli
