#include "nibble/weights/merge.h"

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/weights/merger.h"
#include "nibble/weights/model_folder.h"

namespace nibble {
namespace {

void write_weights(const Merger& merger, const MergeOptions& options, const fs::path& folder, MergeResult& result) {
  std::uint64_t done = 0, total = 0;
  for (const auto& tensor : merger.tensors()) total += bytes_of(tensor);
  check_disk_room(folder, total);
  const auto write = [&](SafetensorsWriter& writer, std::span<const std::byte> bytes) {
    writer.append(bytes);
    done += bytes.size();
    if (options.progress) options.progress(static_cast<double>(done) / static_cast<double>(total));
  };
  result.saved = save_shards(folder, merger.tensors(), options.max_shard_bytes, [&](const TensorSpec& tensor, SafetensorsWriter& writer) {
    const auto take = [&](std::span<const std::byte> bytes) { write(writer, bytes); };
    if (merger.head() && tensor.name == head_tensor_name) {
      convert_matrix(*merger.head(), tensor.dtype, tensor.name, take);
    } else {
      result.norms += merge_matrix(merger.matrix_of(tensor), take);
    }
  });
}

void write_config(const Merger& merger, const MergeOptions& options, const fs::path& folder) {
  Json json = read_json_file(options.model / "config.json");
  if (options.dtype) {
    constexpr auto name = [](DType dtype) {
      return dtype == DType::f32 ? "float32" : dtype == DType::f16 ? "float16" : "bfloat16";
    };
    // transformers 4 writes torch_dtype, which 5 still reads.
    json[json.contains("dtype") ? "dtype" : "torch_dtype"] = name(*options.dtype);
  }
  json.erase("quantization_config");
  if (merger.head()) json["tie_word_embeddings"] = false;
  write_file_atomically(folder / "config.json", write_json(json) + "\n");
}

}  // namespace

MergeResult merge(const MergeOptions& options) {
  check<UsageError>(!options.output.empty(), "merge", "No output folder is named.");
  std::vector<fs::path> inputs{options.model};
  for (const MergeAdapter& adapter : options.adapters) inputs.push_back(adapter.folder);
  check_output_folder(options.output, inputs, options.overwrite);
  const Merger merger(options);
  AtomicFolder folder(options.output);
  MergeResult result;
  write_weights(merger, options, folder.path(), result);
  write_config(merger, options, folder.path());
  copy_model_files(options.model, folder.path());
  folder.commit();
  return result;
}

}  // namespace nibble
