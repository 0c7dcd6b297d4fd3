#include "nibble/quant/parallel.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

namespace nibble {

void parallel_ranges(std::size_t count, std::size_t least, unsigned threads,
                     const std::function<void(std::size_t begin, std::size_t end)>& work) {
  if (count == 0) return;
  const std::size_t wanted = threads != 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
  const std::size_t ranges = std::clamp<std::size_t>(count / std::max<std::size_t>(least, 1), 1, wanted);
  std::vector<std::exception_ptr> errors(ranges);
  const auto run = [&](std::size_t range) {
    try {
      work(count * range / ranges, count * (range + 1) / ranges);
    } catch (...) {
      errors[range] = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (std::size_t range = 1; range < ranges; ++range) helpers.emplace_back(run, range);
    run(0);
  }
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace nibble
