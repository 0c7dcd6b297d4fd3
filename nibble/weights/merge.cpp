#include "nibble/weights/merge.h"

#include <algorithm>
#include <array>
#include <map>

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/weights/checkpoint_check.h"

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
  check<UsageError>(fs::is_directory(output, ignored), output.string(), "The output is a file; it must be a folder.");
  check<UsageError>(options.overwrite || fs::is_empty(output, ignored), output.string(),
                    "The output folder is not empty; name another, or allow it to be overwritten.");
}

// Writes one model; what is to be known about each tensor is collected before the first byte is written.
class Merger {
 public:
  explicit Merger(const MergeOptions& options)
      : options_(options), config_(read_model_config(options.model)), base_(options.model) {
    check_checkpoint(base_, config_);
    if (!options.adapter.empty()) adapter_ = load_lora_adapter(options.adapter, config_);
    for (const auto& tensor : base_tensors(config_)) {
      const auto bnb = quantised(base_, tensor);
      tensors_.push_back({tensor.name, options.dtype.value_or(bnb ? bnb->dtype : *base_.at(tensor.name).tensor->dtype), tensor.shape});
      if (bnb) quantised_.emplace(tensor.name, *bnb);
    }
    if (trains_head() && config_.tie_word_embeddings) {
      tensors_.push_back(tensors_.front());  // the embedding, of the same type and shape
      tensors_.back().name = head_tensor_name;
    }
    for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
      for (const Projection p : all_projections) {
        const bool adapted = adapter_ && adapter_->at(layer, p).used();
        projections_.emplace(projection_tensor_name(layer, p), adapted ? &adapter_->at(layer, p) : nullptr);
      }
    }
  }

  void write_weights(const fs::path& folder, MergeResult& result) {
    std::uint64_t done = 0, total = 0;
    for (const auto& tensor : tensors_) total += bytes_of(tensor);
    check_room(folder, total);
    const auto write = [&](SafetensorsWriter& writer, std::span<const std::byte> bytes) {
      writer.append(bytes);
      done += bytes.size();
      if (options_.progress) options_.progress(static_cast<double>(done) / static_cast<double>(total));
    };
    result.saved = save_shards(folder, tensors_, options_.max_shard_bytes,
                               [&](const TensorSpec& tensor, SafetensorsWriter& writer) {
                                 const auto take = [&](std::span<const std::byte> bytes) { write(writer, bytes); };
                                 if (trains_head() && tensor.name == head_tensor_name) {
                                   convert_matrix(*adapter_->head, tensor.dtype, tensor.name, take);
                                 } else {
                                   result.norms += merge_matrix(matrix_of(tensor), take);
                                 }
                               });
  }

  void write_config(const fs::path& folder) const {
    Json json = read_json_file(options_.model / "config.json");
    if (options_.dtype) {
      constexpr auto name = [](DType dtype) {
        return dtype == DType::f32 ? "float32" : dtype == DType::f16 ? "float16" : "bfloat16";
      };
      // transformers 4 writes torch_dtype, which 5 still reads.
      json[json.contains("dtype") ? "dtype" : "torch_dtype"] = name(*options_.dtype);
    }
    json.erase("quantization_config");
    if (trains_head()) json["tie_word_embeddings"] = false;
    write_file_atomically(folder / "config.json", write_json(json) + "\n");
  }

 private:
  bool trains_head() const { return adapter_ && adapter_->head; }

  MergeMatrix matrix_of(const TensorSpec& tensor) const {
    MergeMatrix matrix{.base = base_.at(tensor.name), .dtype = tensor.dtype};
    if (const auto quantised = quantised_.find(tensor.name); quantised != quantised_.end()) matrix.bnb = quantised->second;
    const auto projection = projections_.find(tensor.name);
    if (projection == projections_.end()) return matrix;
    matrix.through_nf4 = options_.onto == MergeBase::nf4 && !matrix.bnb;  // what is quantised has been through it
    matrix.lora = projection->second;
    if (adapter_) matrix.scaling = adapter_->config.scaling();
    return matrix;
  }

  static void check_room(const fs::path& folder, std::uint64_t bytes) {
    std::error_code error;
    const auto space = fs::space(folder, error);
    check<DataError>(error || space.available >= bytes, folder.parent_path().string(),
                     "The merged weights take {} bytes; the disk has room for {}.", bytes, space.available);
  }

  const MergeOptions& options_;
  ModelConfig config_;
  Checkpoint base_;
  std::optional<LoraAdapter> adapter_;
  std::vector<TensorSpec> tensors_;
  std::map<std::string, BnbMatrix, std::less<>> quantised_;  // by tensor
  std::map<std::string, const LoraMatrices*, std::less<>> projections_;  // by tensor; null where not adapted
};

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
  check<UsageError>(!options.output.empty(), "merge", "No output folder is named.");
  check_output(options);
  Merger merger(options);
  AtomicFolder folder(options.output);
  MergeResult result;
  merger.write_weights(folder.path(), result);
  merger.write_config(folder.path());
  copy_files(options.model, folder.path());
  folder.commit();
  return result;
}

}  // namespace nibble
