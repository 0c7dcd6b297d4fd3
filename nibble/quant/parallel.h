#pragma once

#include <cstddef>
#include <functional>

namespace nibble {

// Cuts [0, count) into one range a thread and calls work(begin, end) for each, one of them on the calling thread.
// `threads` 0 is as many as the processor has; fewer run when a range would be shorter than `least`. The first
// exception is thrown again after all have ended. What a range computes must not depend on where it was cut.
void parallel_ranges(std::size_t count, std::size_t least, unsigned threads,
                     const std::function<void(std::size_t begin, std::size_t end)>& work);

}  // namespace nibble
