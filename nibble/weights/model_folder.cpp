#include "nibble/weights/model_folder.h"

#include <algorithm>
#include <array>

#include "nibble/base/error.h"
#include "nibble/weights/peft.h"

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

// Whether a verb may have written this into an output folder: weights, what describes them, and an adapter's form for another program.
bool is_of_an_output(const fs::path& entry) {
  const std::string name = entry.filename().string();
  constexpr std::array written{"config.json", "adapter_config.json", "cache.json", "Modelfile", "model.safetensors.index.json"};
  const auto named = [&](const auto& names) { return std::find(names.begin(), names.end(), name) != names.end(); };
  std::error_code ignored;
  if (fs::is_directory(entry, ignored)) return name == "pissa_init" || name == "loftq_init";
  const bool weights = entry.extension() == ".safetensors" || entry.extension() == ".gguf";
  return fs::is_regular_file(entry, ignored) && (weights || named(written) || named(copied_files) || is_adapter_card(entry));
}

// --overwrite replaces the folder whole, so that nothing else may lie there.
void check_is_an_output(const fs::path& output) {
  std::error_code error;
  check<UsageError>(!contains(whole_path(output), whole_path(fs::current_path(error))), output.string(),
                    "--overwrite would remove the working folder; name another output.");
  for (fs::directory_iterator entry(output, error), end; !error && entry != end; entry.increment(error)) {
    check<UsageError>(is_of_an_output(entry->path()), output.string(),
                      "--overwrite would remove {} too, which is no part of a model or an adapter; move it elsewhere, or name another output.",
                      entry->path().filename().string());
  }
}

}  // namespace

void check_output_file(const fs::path& output, std::span<const fs::path> inputs, bool overwrite) {
  check_place(output, inputs);
  if (!path_exists(output)) return;
  std::error_code ignored;
  check<UsageError>(fs::is_regular_file(output, ignored), output.string(), "The output is a folder; a GGUF file is one file.");
  check<UsageError>(overwrite, output.string(), "The output file is there already; name another, or give --overwrite.");
  for (const fs::path& read : inputs) {
    const bool inside = !read.empty() && contains(whole_path(read), whole_path(output));
    check<UsageError>(!inside || output.extension() == ".gguf", output.string(),
                      "The output would take the place of a file of {}, which is read; --overwrite replaces none there but those named .gguf.", read.string());
  }
}

void check_folder_to_replace(const fs::path& output, std::span<const fs::path> inputs) {
  check_place(output, inputs);
  std::error_code ignored;
  check<UsageError>(!path_exists(output) || fs::is_directory(output, ignored), output.string(), "The output is a file; it must be a folder.");
}

void check_output_folder(const fs::path& output, std::span<const fs::path> inputs, bool overwrite) {
  check_folder_to_replace(output, inputs);
  if (!path_exists(output)) return;
  std::error_code ignored;
  check<UsageError>(overwrite || fs::is_empty(output, ignored), output.string(),
                    "The output folder is not empty; name another, or give --overwrite.");
  if (overwrite) check_is_an_output(output);
}

void check_disk_room(const fs::path& folder, std::uint64_t bytes, const fs::path& output, std::string_view what) {
  std::error_code error;
  fs::path there = fs::absolute(folder, error);
  while (there.has_relative_path() && !fs::exists(there, error)) there = there.parent_path();
  const auto space = fs::space(there, error);
  check<DataError>(error || space.available >= bytes, output.string(), "{} take {} bytes; the disk has room for {}.", what, bytes, space.available);
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
