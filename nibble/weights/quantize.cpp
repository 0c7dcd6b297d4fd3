#include "nibble/weights/quantize.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>

#include "nibble/base/dynamic_map.h"
#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/io/gguf.h"
#include "nibble/quant/double_quant.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/decoded_tensor.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/model_folder.h"
#include "nibble/weights/read_nf4.h"

namespace nibble {
namespace {

constexpr std::size_t copy_bytes = std::size_t{4} << 20;

std::string_view torch_name(DType dtype) {
  return dtype == DType::f32 ? "float32" : dtype == DType::f16 ? "float16" : "bfloat16";
}

// As Python's json.dumps writes QuantState.as_dict; `offset` is of the scales where they are quantised too.
std::string state_text(DType dtype, const Shape& shape, std::optional<float> offset) {
  std::string text = fmt::format(R"({{"quant_type": "nf4", "blocksize": {}, "dtype": "{}", "shape": [{}, {}])", nf4_block, torch_name(dtype),
                                 shape[0], shape[1]);
  if (offset) {
    text += fmt::format(R"(, "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {})", nested_block_size,
                        write_json(Json(double{*offset})));
  }
  return text + "}";
}

template <typename T>
std::span<const std::byte> bytes_of_values(const T& values) {
  return std::as_bytes(std::span(values));
}

// Reports the part of the bytes to be read that was read.
class Meter {
 public:
  Meter(const std::function<void(double)>& report, std::uint64_t total) : report_(report), total_(std::max<std::uint64_t>(1, total)) {}
  void add(std::uint64_t bytes) {
    done_ += bytes;
    if (report_) report_(static_cast<double>(done_) / static_cast<double>(total_));
  }

 private:
  const std::function<void(double)>& report_;
  std::uint64_t total_, done_ = 0;
};

// One model's folder in the making.
class Quantizer {
 public:
  explicit Quantizer(const QuantizeOptions& options)
      : options_(options), config_(read_model_config(options.model)), base_(open_checkpoint(options.model, config_)), tensors_(base_tensors(config_)) {
    check_checkpoint(base_, config_);
    for (const BaseTensor& tensor : tensors_) {
      if (!is_projection(tensor.name, tensor.shape)) continue;
      check<DataError>(!quantised(base_, tensor), options.model.string(), "The tensor {} is in 4 bits already; give the model that it was made from.",
                       tensor.name);
      check<DataError>(tensor.numel() % nf4_block == 0, tensor.name, "A matrix of {} is no whole number of NF4 blocks of {}.",
                       to_string(tensor.shape), nf4_block);
      projections_.push_back(&tensor);
    }
  }

  // The adapter that `start` makes of the base; after write_weights().
  void write_start(const fs::path& folder) {
    if (!options_.start) return;
    first_.config.base_model_name_or_path = options_.output.string();
    save_lora_adapter(folder / folder_of(options_.start->kind), first_);
  }

  QuantizeResult write_weights(const fs::path& folder) {
    std::uint64_t source = 0, stored = 0, of_projections = 0, bytes = 0, parameters = 0;
    for (const BaseTensor& tensor : tensors_) {
      source += base_.at(tensor.name).tensor->bytes;
      stored += stored_bytes(*base_.at(tensor.name).tensor);
      parameters += tensor.numel();
    }
    for (const BaseTensor* tensor : projections_) of_projections += base_.at(tensor->name).tensor->bytes;
    Meter meter(options_.progress, source + (options_.double_quant ? of_projections : 0));
    if (options_.double_quant) find_offsets(meter);
    const auto specs = all_specs();
    for (const TensorSpec& spec : specs) bytes += bytes_of(spec);
    check_disk_room(folder, bytes, options_.output);
    ShardWriter writer(folder, specs, options_.max_shard_bytes);
    for (const BaseTensor& tensor : tensors_) {
      if (!is_projection(tensor.name, tensor.shape)) copy(tensor, writer, meter);
    }
    const auto append = [&](const BaseTensor& tensor, const Nf4Values& values) { append_nf4(tensor, values, writer); };
    if (options_.start) {
      each_started(meter, append);
    } else {
      each_in_nf4(meter, append);
    }
    return {.saved = writer.finish(parameters), .matrices = projections_.size(), .source_bytes = stored};
  }

  void write_config(const fs::path& folder) const {
    Json json = read_json_file(options_.model / "config.json");
    // What transformers writes of a BitsAndBytesConfig.
    json["quantization_config"] = {{"_load_in_4bit", true},
                                   {"_load_in_8bit", false},
                                   {"bnb_4bit_compute_dtype", torch_name(options_.compute_dtype)},
                                   {"bnb_4bit_quant_storage", "uint8"},
                                   {"bnb_4bit_quant_type", "nf4"},
                                   {"bnb_4bit_use_double_quant", options_.double_quant},
                                   {"llm_int8_enable_fp32_cpu_offload", false},
                                   {"llm_int8_has_fp16_weight", false},
                                   {"llm_int8_skip_modules", nullptr},
                                   {"llm_int8_threshold", 6.0},
                                   {"load_in_4bit", true},
                                   {"load_in_8bit", false},
                                   {"quant_method", "bitsandbytes"}};
    write_file_atomically(folder / "config.json", write_json(json) + "\n");
  }

 private:
  DType dtype_of(const BaseTensor& tensor) const { return *base_.at(tensor.name).tensor->dtype; }

  // Gives each projection in NF4 to `take`, in their order.
  template <typename Take>
  void each_in_nf4(Meter& meter, Take&& take) const {
    std::vector<Nf4Source> sources;
    for (const BaseTensor* tensor : projections_) sources.push_back({base_.at(tensor->name)});
    Nf4Reader reader(sources);
    for (const BaseTensor* tensor : projections_) {
      take(*tensor, reader.next());
      meter.add(base_.at(tensor->name).tensor->bytes);
    }
  }

  // The same with the start's adapter taken out, which is kept. What has no adapter is quantised as it is.
  template <typename Take>
  void each_started(Meter& meter, Take&& take) {
    check<UsageError>(!config_.has_experts(), options_.model.string(), "The start of an adapter cannot be made with a mixture of experts.");
    first_ = make_lora_adapter(config_, options_.start->lora);
    const LoraModules modules = first_.modules();
    std::map<std::string, std::pair<std::uint32_t, Projection>> by_name;
    for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
      for (const Projection p : all_projections) by_name[projection_tensor_name(layer, p)] = {layer, p};
    }
    for (const BaseTensor* tensor : projections_) {
      const auto [layer, p] = by_name.at(tensor->name);
      const auto values = base_.read_as_f32(tensor->name);
      StartedMatrix started = start_matrix(values, projection_dims(config_, p), modules[layer][static_cast<std::size_t>(p)], *options_.start,
                                           tensor->name);
      first_.at(layer, p) = std::move(started.lora);
      take(*tensor, {.packed = started.packed, .absmax = started.absmax});
      meter.add(base_.at(tensor->name).tensor->bytes);
    }
  }

  // The text of an offset is part of a file's header, so all of them are known before a byte is written.
  void find_offsets(Meter& meter) {
    each_in_nf4(meter, [&](const BaseTensor& tensor, const Nf4Values& values) { offsets_[tensor.name] = mean_scale(values.absmax); });
  }

  std::string state_of(const BaseTensor& tensor) const {
    const auto offset = offsets_.find(tensor.name);
    return state_text(written_dtype(*base_.at(tensor.name).tensor), tensor.shape, offset == offsets_.end() ? std::optional<float>() : offset->second);
  }

  // In the order in which transformers has them.
  std::vector<TensorSpec> all_specs() const {
    std::vector<TensorSpec> specs;
    for (const BaseTensor& tensor : tensors_) {
      if (!is_projection(tensor.name, tensor.shape)) {
        specs.push_back({tensor.name, dtype_of(tensor), tensor.shape});
        continue;
      }
      const auto count = static_cast<std::int64_t>(tensor.numel()), blocks = count / static_cast<std::int64_t>(nf4_block);
      const auto nested = (blocks - 1) / static_cast<std::int64_t>(nested_block_size) + 1;
      specs.push_back({tensor.name, DType::u8, {count / 2, 1}});
      specs.push_back({tensor.name + ".absmax", options_.double_quant ? DType::u8 : DType::f32, {blocks}});
      specs.push_back({tensor.name + ".quant_map", DType::f32, {static_cast<std::int64_t>(nf4_codes.size())}});
      if (options_.double_quant) {
        specs.push_back({tensor.name + ".nested_absmax", DType::f32, {nested}});
        specs.push_back({tensor.name + ".nested_quant_map", DType::f32, {static_cast<std::int64_t>(dynamic_map().size())}});
      }
      specs.push_back({tensor.name + std::string(bnb_state_suffix), DType::u8, {static_cast<std::int64_t>(state_of(tensor).size())}});
    }
    return specs;
  }

  void copy(const BaseTensor& tensor, ShardWriter& writer, Meter& meter) const {
    const std::uint64_t bytes = base_.at(tensor.name).tensor->bytes;
    std::vector<std::byte> piece;
    for (std::uint64_t first = 0; first < bytes; first += piece.size()) {
      piece.resize(std::min<std::uint64_t>(copy_bytes, bytes - first));
      base_.read(tensor.name, first, piece);
      writer.append(tensor.name, piece);
      meter.add(piece.size());
    }
  }

  void append_nf4(const BaseTensor& tensor, const Nf4Values& values, ShardWriter& writer) const {
    const auto append = [&](std::string_view suffix, std::span<const std::byte> bytes) { writer.append(tensor.name + std::string(suffix), bytes); };
    append("", std::as_bytes(values.packed));
    append(".quant_map", bytes_of_values(nf4_codes));
    append(bnb_state_suffix, bytes_of_values(state_of(tensor)));
    if (!options_.double_quant) return append(".absmax", std::as_bytes(values.absmax));
    const DoubleQuantized scales = double_quantize(values.absmax, offsets_.at(tensor.name));
    append(".absmax", bytes_of_values(scales.codes));
    append(".nested_absmax", bytes_of_values(scales.nested_absmax));
    append(".nested_quant_map", bytes_of_values(dynamic_map()));
  }

  const QuantizeOptions& options_;
  ModelConfig config_;
  Checkpoint base_;
  std::vector<BaseTensor> tensors_;
  std::vector<const BaseTensor*> projections_;
  LoraAdapter first_;  // of a start
  std::map<std::string, float, std::less<>> offsets_;  // of the scales, by tensor; empty unless these are quantised too
};

}  // namespace

QuantizeResult write_quantized(const QuantizeOptions& options, const fs::path& folder) {
  Quantizer quantizer(options);
  const QuantizeResult result = quantizer.write_weights(folder);
  quantizer.write_config(folder);
  quantizer.write_start(folder);
  return result;
}

QuantizeResult quantize_model(const QuantizeOptions& options) {
  check<UsageError>(!options.output.empty(), "quantize", "No output folder is named.");
  check<UsageError>(!is_gguf(options.model), options.model.string(),
                    "This is a GGUF file, and a model folder is quantised; `nibble merge --model FILE --output FOLDER` makes one of it.");
  check<UsageError>(!options.start || !options.double_quant, "quantize",
                    "An adapter's start is fitted to scales as they are; leave --double-quant out, which would round them.");
  check_output_folder(options.output, std::span(&options.model, 1), options.overwrite);
  AtomicFolder folder(options.output);
  const QuantizeResult result = write_quantized(options, folder.path());
  copy_model_files(options.model, folder.path());
  folder.commit();
  return result;
}

}  // namespace nibble
