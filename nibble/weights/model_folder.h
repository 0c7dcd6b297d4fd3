#pragma once

#include "nibble/io/file.h"

#include <span>
#include <string_view>

// Writing a folder, or file, from a model's.
namespace nibble {

// UsageError where `output` would take the place of one of `inputs` (empty ones are passed over), is a file, or is a folder that is
// not empty without `overwrite`, or with it holds the working folder or what no verb writes.
void check_output_folder(const fs::path& output, std::span<const fs::path> inputs, bool overwrite);

// The first two alone, of a folder that is nibble's own.
void check_folder_to_replace(const fs::path& output, std::span<const fs::path> inputs);

// As check_output_folder of a single file, which is there already without `overwrite`, or with it is one of an input's folder, but for GGUF files.
void check_output_file(const fs::path& output, std::span<const fs::path> inputs, bool overwrite);

// DataError, which names `output` and `what`, where the disk of `folder`, or of the nearest one above that exists, has no room for so many bytes.
void check_disk_room(const fs::path& folder, std::uint64_t bytes, const fs::path& output, std::string_view what = "The weights to be written");

// Copies what belongs to a model beside its weights and config.json, where it is there: tokenizer, chat template,
// generation_config.json, licence.
void copy_model_files(const fs::path& from, const fs::path& to);

}  // namespace nibble
