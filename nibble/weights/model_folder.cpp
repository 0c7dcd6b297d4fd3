#include "nibble/weights/model_folder.h"

#include <algorithm>
#include <array>

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr std::array copied_files{
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "NOTICE",
};

// With links followed and without a slash at the end.
fs::path whole_path(const fs::path& path) {
  std::error_code error;
  const fs::path whole = fs::weakly_canonical(fs::absolute(path, error), error);
  check<DataError>(!error, path.string(), "Could not find out where this lies: {}.", error.message());
  return whole.has_filename() ? whole : whole.parent_path();
}

bool contains(const fs::path& folder, const fs::path& path) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

void check_place(const fs::path& output, std::span<const fs::path> inputs) {
  for (const fs::path& read : inputs) {
    check<UsageError>(read.empty() || !contains(whole_path(output), whole_path(read)), output.string(),
                      "The output would take the place of {}, which is read.", read.string());
  }
}

}  // namespace

void check_output_file(const fs::path& output, std::span<const fs::path> inputs, bool overwrite) {
  check_place(output, inputs);
  if (!path_exists(output)) return;
  std::error_code ignored;
  check<UsageError>(fs::is_regular_file(output, ignored), output.string(), "The output is a folder; a GGUF file is one file.");
  check<UsageError>(overwrite, output.string(), "The output file is there already; name another, or give --overwrite.");
}

void check_output_folder(const fs::path& output, std::span<const fs::path> inputs, bool overwrite) {
  check_place(output, inputs);
  if (!path_exists(output)) return;
  std::error_code ignored;
  check<UsageError>(fs::is_directory(output, ignored), output.string(), "The output is a file; it must be a folder.");
  check<UsageError>(overwrite || fs::is_empty(output, ignored), output.string(),
                    "The output folder is not empty; name another, or give --overwrite.");
}

void check_disk_room(const fs::path& folder, std::uint64_t bytes, const fs::path& output) {
  std::error_code error;
  const auto space = fs::space(folder, error);
  check<DataError>(error || space.available >= bytes, output.string(),
                   "The weights to be written take {} bytes; the disk has room for {}.", bytes, space.available);
}

void copy_model_files(const fs::path& from, const fs::path& to) {
  for (const auto* name : copied_files) {
    if (!path_exists(from / name)) continue;
    std::error_code error;
    fs::copy_file(from / name, to / name, error);
    check<DataError>(!error, (from / name).string(), "Could not copy this file: {}.", error.message());
  }
}

}  // namespace nibble
