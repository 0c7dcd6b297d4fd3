#pragma once

#include "nibble/io/json.h"

#include <vector>

// Private to io: the names of the files that a GGUF model was split into (llama.cpp's llama_split_path).
namespace nibble {

constexpr std::int64_t max_gguf_parts = 512;  // each holds a descriptor

// PREFIX-00002-of-00003.gguf
struct GgufPartName {
  fs::path folder;
  std::string prefix;
  std::int64_t count = 0;

  fs::path of(std::int64_t number) const;
};

// From the first part's path and metadata. DataError where it is another part, or has another name than parts have.
GgufPartName gguf_part_name(const fs::path& path, const Json& metadata, std::int64_t count);

// The files of a folder that end in .gguf, in order, without those of an image model (mmproj*). Never throws.
std::vector<fs::path> gguf_files_in(const fs::path& folder);

// The file itself, or of a folder the one that is a model or its first part. DataError where a folder has several models.
fs::path gguf_first_part(const fs::path& path);

}  // namespace nibble
