#include "nibble/weights/merge.h"

#include <algorithm>
#include <array>

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/io/gguf_tokenizer.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/merge_tensors.h"

namespace nibble {
namespace {

// What belongs to a model beside its weights and config.json, where it is there.
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

void check_output(const MergeOptions& options) {
  const auto& output = options.output;
  for (const auto& read : {options.model, options.adapter}) {
    check<UsageError>(read.empty() || !contains(whole_path(output), whole_path(read)), output.string(),
                      "The output would take the place of {}, which is read.", read.string());
  }
  if (!path_exists(output)) return;
  std::error_code ignored;
  if (options.gguf) {
    check<UsageError>(fs::is_regular_file(output, ignored), output.string(), "The output is a folder; a GGUF file is one file.");
    check<UsageError>(options.overwrite, output.string(), "The output file is there already; name another, or allow it to be overwritten.");
    return;
  }
  check<UsageError>(fs::is_directory(output, ignored), output.string(), "The output is a file; it must be a folder.");
  check<UsageError>(options.overwrite || fs::is_empty(output, ignored), output.string(),
                    "The output folder is not empty; name another, or allow it to be overwritten.");
}

void write_weights(const MergeOptions& options, const MergedTensors& merged, const fs::path& folder, MergeResult& result) {
  std::uint64_t done = 0, total = 0;
  for (const auto& tensor : merged.tensors()) total += bytes_of(tensor);
  check_room(folder, total);
  result.saved = save_shards(folder, merged.tensors(), options.max_shard_bytes, [&](const TensorSpec& tensor, SafetensorsWriter& writer) {
    result.norms += merged.make(tensor, [&](std::span<const std::byte> bytes) {
      writer.append(bytes);
      done += bytes.size();
      if (options.progress) options.progress(static_cast<double>(done) / static_cast<double>(total));
    });
  });
}

void write_config(const MergeOptions& options, const MergedTensors& merged, const fs::path& folder) {
  Json json = is_gguf(options.model) ? config_of_gguf(GgufFile(options.model)) : read_json_file(options.model / "config.json");
  if (options.dtype) {
    constexpr auto name = [](DType dtype) {
      return dtype == DType::f32 ? "float32" : dtype == DType::f16 ? "float16" : "bfloat16";
    };
    // transformers 4 writes torch_dtype, which 5 still reads.
    json[json.contains("dtype") ? "dtype" : "torch_dtype"] = name(*options.dtype);
  }
  json.erase("quantization_config");
  if (merged.unties_head()) json["tie_word_embeddings"] = false;
  write_file_atomically(folder / "config.json", write_json(json) + "\n");
}

// A GGUF file has the tokenizer in its metadata.
void write_tokenizer(const fs::path& gguf, const fs::path& folder) {
  const HfTokenizer files = read_hf_tokenizer(gguf);
  write_file_atomically(folder / "tokenizer.json", write_json(files.tokenizer) + "\n");
  write_file_atomically(folder / "tokenizer_config.json", write_json(files.config) + "\n");
}

void copy_files(const fs::path& from, const fs::path& to) {
  for (const auto* name : copied_files) {
    if (!path_exists(from / name)) continue;
    std::error_code error;
    fs::copy_file(from / name, to / name, error);
    check<DataError>(!error, (from / name).string(), "Could not copy this file: {}.", error.message());
  }
}

}  // namespace

MergeResult merge(const MergeOptions& options) {
  check<UsageError>(!options.output.empty(), "merge", "No output is named.");
  check_output(options);
  const MergedTensors merged(options);
  MergeResult result;
  if (options.gguf) {
    write_merged_gguf(options, merged, result);
    return result;
  }
  AtomicFolder folder(options.output);
  write_weights(options, merged, folder.path(), result);
  write_config(options, merged, folder.path());
  if (is_gguf(options.model)) {
    write_tokenizer(options.model, folder.path());
  } else {
    copy_files(options.model, folder.path());
  }
  folder.commit();
  return result;
}

}  // namespace nibble
