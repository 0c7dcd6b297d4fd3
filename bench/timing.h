#pragma once

#include "nibble/gpu/recorder.h"

#include <functional>

namespace nibble::bench {

using Record = std::function<void(gpu::Recorder&)>;

// Seconds of one run of `record` on an idle device: the best of five batches of about 0.1 s each. Before them it runs for
// 0.4 s, since a GPU lowers its clocks while a kernel is compiled.
double seconds_of(gpu::Device& device, const Record& record);

}  // namespace nibble::bench
