#include "nibble/weights/merge.h"

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/io/gguf_tokenizer.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/merger.h"
#include "nibble/weights/model_folder.h"

namespace nibble {
namespace {

void check_output(const MergeOptions& options) {
  std::vector<fs::path> inputs{options.model};
  for (const MergeAdapter& adapter : options.adapters) inputs.push_back(adapter.folder);
  if (is_gguf(options.model)) {
    const GgufFile model(options.model);
    for (const File& part : model.files()) inputs.push_back(part.path());
  }
  if (options.gguf) {
    check_output_file(options.output, inputs, options.overwrite);
  } else {
    check_output_folder(options.output, inputs, options.overwrite);
  }
}

void write_weights(const Merger& merger, const MergeOptions& options, const fs::path& folder, MergeResult& result) {
  std::uint64_t done = 0, total = 0;
  for (const auto& tensor : merger.tensors()) total += bytes_of(tensor);
  check_disk_room(folder, total, options.output);
  result.saved = save_shards(folder, merger.tensors(), options.max_shard_bytes, [&](const TensorSpec& tensor, SafetensorsWriter& writer) {
    result.norms += merger.make(tensor, [&](std::span<const std::byte> bytes) {
      writer.append(bytes);
      done += bytes.size();
      if (options.progress) options.progress(static_cast<double>(done) / static_cast<double>(total));
    });
  });
}

void write_config(const Merger& merger, const MergeOptions& options, const fs::path& folder) {
  Json json = is_gguf(options.model) ? config_of_gguf(GgufFile(options.model)) : read_json_file(options.model / "config.json");
  if (options.dtype) {
    constexpr auto name = [](DType dtype) {
      return dtype == DType::f32 ? "float32" : dtype == DType::f16 ? "float16" : "bfloat16";
    };
    // transformers 4 writes torch_dtype, which 5 still reads.
    json[json.contains("dtype") ? "dtype" : "torch_dtype"] = name(*options.dtype);
  }
  json.erase("quantization_config");
  if (merger.unties_head()) json["tie_word_embeddings"] = false;
  write_file_atomically(folder / "config.json", write_json(json) + "\n");
}

// A GGUF file has the tokenizer in its metadata.
void write_tokenizer(const fs::path& gguf, const fs::path& folder) {
  const HfTokenizer files = read_hf_tokenizer(gguf);
  write_file_atomically(folder / "tokenizer.json", write_json(files.tokenizer) + "\n");
  write_file_atomically(folder / "tokenizer_config.json", write_json(files.config) + "\n");
}

}  // namespace

MergeResult merge(const MergeOptions& options) {
  check<UsageError>(!options.output.empty(), "merge", "No output is named.");
  check_output(options);
  const Merger merger(options);
  MergeResult result;
  if (options.gguf) {
    write_merged_gguf(options, merger, result);
    return result;
  }
  AtomicFolder folder(options.output);
  write_weights(merger, options, folder.path(), result);
  write_config(merger, options, folder.path());
  if (is_gguf(options.model)) {
    write_tokenizer(options.model, folder.path());
  } else {
    copy_model_files(options.model, folder.path());
  }
  if (const fs::path from = tokenizer_of(options); from != options.model) text::write_tokenizer_files(folder.path(), text::read_tokenizer_files(from));
  folder.commit();
  return result;
}

}  // namespace nibble
