#pragma once

#include "nibble/cli/command.h"
#include "nibble/cli/device_flags.h"
#include "nibble/gpu/recorder.h"
#include "nibble/io/json.h"
#include "nibble/weights/config.h"

#include <cstdio>
#include <span>
#include <string>
#include <vector>

namespace nibble::cli {

// The measurements of `nibble bench`, each in a file of its own; they share what stands below.
void add_bench_step(CLI::App& bench, Action& action);
void add_bench_matmul(CLI::App& bench, Action& action);
void add_bench_attention(CLI::App& bench, Action& action);
void add_bench_generate(CLI::App& bench, Action& action);
void add_bench_load(CLI::App& bench, Action& action);

// What a card can do at most, a second; 0 where it is not known.
struct Peaks {
  double flops = 0, bytes = 0;
  // The least time that this much work takes; 0 where no peak is known.
  double seconds(double flops_done, double bytes_moved) const;
};

// The dense f16 rate and the memory bandwidth of the maker's data sheet, by the adapter's name.
Peaks known_peaks(std::string_view adapter_name);

// The options of every measurement.
struct BenchFlags {
  DeviceFlags device;
  std::string json;  // file for the results, "-" for standard output; empty: none
  double peak_tflops = 0, peak_gbs = 0;

  void add_to(CLI::App& verb);
  Peaks peaks(const gpu::AdapterInfo& info) const;
};

// Sizes by a published model's name or a model folder's config.json.
struct ShapeFlags {
  std::string name = "qwen3-4b", model;

  void add_to(CLI::App& verb);
  ModelConfig config() const;
  const std::string& label() const { return model.empty() ? name : model; }
};

// Seconds of one run over several repetitions.
struct Spread {
  double median = 0, min = 0, max = 0;
  std::size_t repeats = 0;
};
Spread spread_of(std::vector<double> seconds);

// Seconds of one run of `record` on an idle device: `repeats` batches of about 0.1 s each, after it has run for 0.4 s, since a
// GPU lowers its clocks while a kernel is compiled.
Spread measure(gpu::Device& device, std::uint32_t repeats, const std::function<void(gpu::Recorder&)>& record);

// Keys of a row: seconds {median, min, max, repeats}, tflops, gbs, and share_of_peak where a peak is known: the least time
// that the work could take over the time that it took.
void put_rates(Json& row, const Spread& seconds, double flops, double bytes, const Peaks& peaks);

// The table by kernel of --profile, with the least time that the card's peaks leave each, and its rows as JSON.
Json print_kernels(std::FILE* out, std::span<const gpu::ProfileRow> rows, const Peaks& peaks);

// One dispatch of each kernel that ran since `before`: the mean, longest first.
std::vector<gpu::ProfileRow> profile_of_each(std::vector<gpu::ProfileRow> rows, std::span<const gpu::ProfileRow> before);

// The results of one measurement: a table for the reader, and rows in JSON with what is needed to compare them later.
class BenchReport {
 public:
  BenchReport(std::string benchmark, const BenchFlags& flags, Json settings);

  // Names the device that the rows come from; its first call prints a line about it.
  void begin(const gpu::Device& device, ProductPath path);
  void add(Json row) { rows_.push_back(std::move(row)); }
  // Where tables go: standard output, or standard error where the JSON takes that.
  std::FILE* table() const;
  // Writes the JSON where the flags ask for it.
  void finish() const;

 private:
  const BenchFlags& flags_;
  Json head_;
  Json rows_ = Json::array();
  bool begun_ = false;
};

}  // namespace nibble::cli
