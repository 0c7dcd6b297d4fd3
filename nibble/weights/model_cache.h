#pragma once

#include "nibble/io/file.h"

#include <functional>
#include <string>

namespace nibble {

// A model as it is to be loaded.
struct CachedModel {
  fs::path folder;          // in the cache; the model itself where that is in 4 bits already
  bool in_cache = true;     // false: the model itself
  bool made = false;        // just now, and not found
  std::uint64_t bytes = 0;  // of the weights there
};

// Keeps a model quantised (nibble/weights/quantize.h, scales in f32) in a folder of `cache`, which is made where it is missing, so
// that it is quantised once: what loads from it is bit for bit what loads from the model.
//
// The folder's name ends with the model's key: a hash of weights_key(). One that is there is taken where its cache.json names this
// key and the weights_key() of its own files as they were written; any other, damaged, changed or foreign, is made again, with a
// warning through the log. It appears whole or not at all. Errors as of quantize_model; `progress` hears of quantising, from 0 to 1.
CachedModel cached_model(const fs::path& model, const fs::path& cache, const std::function<void(double)>& progress = {});

// What tells a model folder's weights from others without reading them all: config.json and generation_config.json; of each file
// of weights name, size and time of the last change; of each tensor name, file, type, shape and place, and the first, middle and last
// 4 KiB. Whoever writes a file changes its time, and a file that is put in another's place with equal size and time (a copy that
// keeps times) is of another model, whose tensors differ nearly everywhere. Not seen is a change between the samples by a program that
// sets the time back.
std::string weights_key(const fs::path& model);

}  // namespace nibble
