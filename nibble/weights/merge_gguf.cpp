#include <algorithm>
#include <cmath>

#include "nibble/base/error.h"
#include "nibble/io/gguf_tokenizer.h"
#include "nibble/quant/ggml.h"
#include "nibble/quant/parallel.h"
#include "nibble/weights/gguf_metadata.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/gguf_names.h"
#include "nibble/weights/merger.h"
#include "nibble/weights/model_folder.h"

namespace nibble {
namespace {

constexpr std::string_view divisors_name = "rope_freqs.weight";
constexpr std::size_t least_stored_a_thread = std::size_t{1} << 14;
constexpr float largest_f16 = 65504;

GgmlType stored_type(const Merger& merger) {
  const std::string& stored = merger.stored_type(module_names(merger.config().experts.count, 0, Projection::down).front() + ".weight");
  return stored == "BF16" || stored.starts_with("F8_") ? GgmlType::bf16 : stored == "F32" || stored == "F64" ? GgmlType::f32 : GgmlType::f16;
}

GgmlType matrix_type(GgufModelType wanted, const Merger& merger) {
  switch (wanted) {
    case GgufModelType::stored: return stored_type(merger);
    case GgufModelType::f32: return GgmlType::f32;
    case GgufModelType::f16: return GgmlType::f16;
    case GgufModelType::bf16: return GgmlType::bf16;
    case GgufModelType::q8_0: return GgmlType::q8_0;
    case GgufModelType::q4_0: return GgmlType::q4_0;
  }
  return GgmlType::f16;
}

// Embedding and head lose most in four bits, and rows that are no whole blocks stay in f16. Routers decide, and are f32.
GgmlType type_of(const TensorSpec& tensor, GgmlType matrices) {
  if (tensor.shape.size() != 2 || is_router(tensor.name)) return GgmlType::f32;
  const bool table = tensor.name == embedding_tensor_name || tensor.name == head_tensor_name;
  const GgmlType type = matrices == GgmlType::q4_0 && table ? GgmlType::q8_0 : matrices;
  return tensor.shape.back() % info_of(type).values == 0 ? type : GgmlType::f16;
}

// Brings the rows of each head into the order of the file.
std::vector<std::byte> interleaved(std::span<const std::byte> rows, std::size_t row_bytes, std::uint64_t head_dim) {
  std::vector<std::byte> result(rows.size());
  for (std::uint64_t row = 0; row * row_bytes < rows.size(); ++row) {
    const auto from = rows.subspan(row * row_bytes, row_bytes);
    std::copy(from.begin(), from.end(),
              result.begin() + static_cast<std::ptrdiff_t>(interleaved_row(row, head_dim) * row_bytes));
  }
  return result;
}

// Turns values into blocks of a type, on all cores.
class BlockMaker {
 public:
  BlockMaker(const TensorSpec& tensor, GgmlType type) : name_(tensor.name), type_(type) {}

  std::span<const std::byte> make(std::span<const std::byte> f32_bytes) {
    values_.resize(f32_bytes.size() / 4);
    convert_to_f32(DType::f32, f32_bytes, values_);
    const GgmlTypeInfo& info = info_of(type_);
    blocks_.resize(values_.size() / info.values * info.bytes);
    parallel_ranges(
        values_.size() / info.values, std::max<std::size_t>(1, least_stored_a_thread / info.values), 0,
        [&](std::size_t begin, std::size_t end) {
          const auto values = std::span<const float>(values_).subspan(begin * info.values, (end - begin) * info.values);
          if (type_ != GgmlType::f32 && type_ != GgmlType::bf16) check_range(values);
          ggml_quantize(type_, values, std::span(blocks_).subspan(begin * info.bytes, (end - begin) * info.bytes));
        });
    return blocks_;
  }

 private:
  // Values and the scales of blocks are f16.
  void check_range(std::span<const float> values) const {
    const auto bad =
        std::find_if(values.begin(), values.end(), [](float value) { return !(std::abs(value) <= largest_f16); });
    check<DataError>(bad == values.end(), name_,
                     "The tensor holds {}, which is beyond {}, the range of {}; take bf16 or f32.",
                     bad == values.end() ? 0.0f : *bad, largest_f16, info_of(type_).name);
  }

  std::string name_;
  GgmlType type_;
  std::vector<float> values_;
  std::vector<std::byte> blocks_;
};

// One tensor after the other, as the file has them.
class GgufModelWriter {
 public:
  GgufModelWriter(const MergeOptions& options, const Merger& merger) : options_(options), merger_(merger) {
    const ModelConfig& config = merger.config();
    const GgmlType matrices = matrix_type(*options.gguf, merger);
    for (const TensorSpec& tensor : merger.tensors()) add(tensor, type_of(tensor, matrices));
    for (const GgufSpec& spec : specs_) total_ += spec.bytes();
    if (config.rope.kind == RopeConfig::Kind::llama3)
      specs_.push_back({std::string(divisors_name), GgmlType::f32, {config.head_dim / 2}});
    metadata_ = gguf_model_metadata(config, options.model, matrices);
    const GgufMetadata tokenizer =
        gguf_tokenizer(read_hf_tokenizer(tokenizer_of(options)), config.vocab_size, options.model.string());
    metadata_.insert(metadata_.end(), tokenizer.begin(), tokenizer.end());
    name_end_token(config);
  }

  MergeNorms write() {
    std::error_code ignored;
    fs::create_directories(fs::absolute(options_.output).parent_path(), ignored);
    check_disk_room(fs::absolute(options_.output).parent_path(), total_, options_.output);
    GgufWriter writer(options_.output, metadata_, specs_);
    MergeNorms norms;
    for (std::size_t i = 0; i < merger_.tensors().size(); ++i)
      norms += write_tensor(merger_.tensors()[i], specs_[places_[i]], writer);
    if (specs_.back().name == divisors_name) {
      const auto divisors = llama3_divisors(merger_.config().rope, merger_.config().head_dim);
      writer.append(std::as_bytes(std::span(divisors)));
    }
    writer.finish();
    return norms;
  }

  std::uint64_t bytes() const { return total_; }

 private:
  // Experts of a projection follow each other, and are one tensor.
  void add(const TensorSpec& tensor, GgmlType type) {
    const std::string name = *gguf_tensor_name(tensor.name);
    if (const auto expert = expert_in(tensor.name); !expert) {
      specs_.push_back({name, type, tensor.shape});
    } else if (*expert == 0) {
      specs_.push_back({name, type, {merger_.config().experts.count, tensor.shape[0], tensor.shape[1]}});
    }
    places_.push_back(specs_.size() - 1);
  }

  // Files of tokenizers need not name one; what ends an answer then stands in config.json.
  void name_end_token(const ModelConfig& config) {
    constexpr std::string_view key = "tokenizer.ggml.eos_token_id";
    const bool there =
        std::any_of(metadata_.begin(), metadata_.end(), [&](const auto& entry) { return entry.first == key; });
    if (!there && !config.eos_token_ids.empty()) metadata_.emplace_back(key, config.eos_token_ids.front());
  }

  MergeNorms write_tensor(TensorSpec tensor, const GgufSpec& spec, GgufWriter& writer) {
    const bool rotated = spec.name.ends_with("attn_q.weight") || spec.name.ends_with("attn_k.weight");
    const bool in_other_order = rotated && merger_.config().family.interleaved_in_gguf;
    tensor.dtype = DType::f32;
    BlockMaker maker(tensor, spec.type);
    std::vector<std::byte> whole;
    const MergeNorms norms = merger_.make(tensor, [&](std::span<const std::byte> bytes) {
      const auto blocks = maker.make(bytes);
      if (in_other_order) {
        whole.insert(whole.end(), blocks.begin(), blocks.end());
      } else {
        writer.append(blocks);
      }
      done_ += blocks.size();
      if (options_.progress) options_.progress(static_cast<double>(done_) / static_cast<double>(total_));
    });
    if (in_other_order)
      writer.append(
          interleaved(whole, whole.size() / static_cast<std::size_t>(tensor.shape[0]), merger_.config().head_dim));
    return norms;
  }

  const MergeOptions& options_;
  const Merger& merger_;
  GgufMetadata metadata_;
  std::vector<GgufSpec> specs_;
  std::vector<std::size_t> places_;  // of the merger's tensors among them
  std::uint64_t total_ = 0, done_ = 0;
};

}  // namespace

void write_merged_gguf(const MergeOptions& options, const Merger& merger, MergeResult& result) {
  check_for_llama_cpp(merger.config(), options.model.string());
  GgufModelWriter writer(options, merger);
  result.norms = writer.write();
  result.saved = {.files = 1, .bytes = writer.bytes()};
  result.notes = llama_cpp_notes(merger.config());
}

}  // namespace nibble
