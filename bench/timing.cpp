#include "bench/timing.h"

#include <algorithm>
#include <chrono>

namespace nibble::bench {
namespace {

double batch_seconds(gpu::Device& device, const Record& record, int count) {
  const auto begin = std::chrono::steady_clock::now();
  gpu::Recorder recorder(device);
  for (int i = 0; i < count; ++i) record(recorder);
  recorder.submit();
  device.wait("bench");
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

double seconds_of(gpu::Device& device, const Record& record) {
  double once = batch_seconds(device, record, 1);
  for (double warm = 0; warm < 0.4;) {
    const int count = std::clamp(static_cast<int>(0.05 / once), 1, 500);
    const double spent = batch_seconds(device, record, count);
    once = spent / count;
    warm += spent;
  }
  const int count = std::clamp(static_cast<int>(0.1 / once), 1, 1000);
  double best = once;
  for (int i = 0; i < 5; ++i) best = std::min(best, batch_seconds(device, record, count) / count);
  return best;
}

}  // namespace nibble::bench
