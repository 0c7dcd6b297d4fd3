#pragma once

#include "nibble/report/progress.h"
#include "nibble/weights/model_cache.h"

#include <CLI/CLI.hpp>

#include <string>

namespace nibble::cli {

// --cache-dir of the verbs that load a model.
void add_cache_option(CLI::App& verb, fs::path& cache_dir);

// The folder to load in the model's place, made where it is not there, and said where it is; the model where `cache_dir` is empty.
fs::path through_cache(const fs::path& model, const fs::path& cache_dir, Progress& progress);

// "DIR (2.5 GiB), made just now"
std::string cache_text(const CachedModel& cached);

}  // namespace nibble::cli
