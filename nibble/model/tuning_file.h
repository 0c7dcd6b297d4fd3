#pragma once

#include "nibble/gpu/device.h"
#include "nibble/kernels/matrix_tuning.h"

#include <filesystem>

namespace nibble {

// matrix-tuning.json in a cache folder: what was found fastest on an adapter, of one driver. Others' entries stay.
inline constexpr std::string_view tuning_file_name = "matrix-tuning.json";

// Attaches to the device what the folder's file says of it; nothing where there is no file, or none of this adapter and driver.
// What does not suit the adapter is left out, and a damaged file is ignored with a warning: it costs speed alone.
void load_matrix_tuning(const gpu::Device& device, const std::filesystem::path& folder);

// Writes what is attached to the device. Throws DataError where the folder cannot be written.
void save_matrix_tuning(const gpu::Device& device, const std::filesystem::path& folder);

}  // namespace nibble
