#include "nibble/weights/device_weights.h"

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/gpu/together.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/layer_stream.h"
#include "nibble/weights/made_up_values.h"
#include "nibble/weights/nf4_room.h"
#include "nibble/weights/read_nf4.h"
#include "nibble/weights/scale_room.h"

#include <algorithm>
#include <chrono>

namespace nibble {
namespace {

// Reports the part of the checkpoint's bytes that has been taken.
class Meter {
 public:
  Meter(const std::function<void(double)>& report, std::uint64_t total) : report_(report), total_(std::max<std::uint64_t>(1, total)) {}
  void add(std::uint64_t bytes) {
    done_ += bytes;
    if (report_) report_(std::min(1.0, static_cast<double>(done_) / static_cast<double>(total_)));
  }

 private:
  const std::function<void(double)>& report_;
  std::uint64_t total_, done_ = 0;
};

gpu::Tensor load_vector(gpu::Device& device, const Checkpoint& checkpoint, const std::string& name) {
  const auto values = checkpoint.read_as_f32(name);
  return device.tensor<float>(DType::f32, {static_cast<std::uint32_t>(values.size())}, values, name);
}

// transformers 4 has bitsandbytes quantise routers too; what it restores is the router then.
gpu::Tensor load_router(gpu::Device& device, const Checkpoint& checkpoint, const ModelConfig& config, std::uint32_t layer) {
  const std::string name = router_tensor_name(layer);
  const std::uint32_t count = config.experts.count, hidden = config.hidden_size;
  std::vector<float> values;
  if (const auto bnb = bnb_matrix(checkpoint, name, count, hidden)) {
    std::vector<std::uint8_t> codes(nf4_packed_bytes(std::size_t{count} * hidden));
    std::vector<float> absmax(nf4_blocks(std::size_t{count} * hidden));
    read_bnb(*bnb, 0, codes, absmax);
    values.resize(std::size_t{count} * hidden);
    nf4_dequantize(codes, absmax, values, {.codes = bnb->book});
  } else {
    values = checkpoint.read_as_f32(name);
  }
  return device.tensor<float>(DType::f32, {config.experts.count, config.hidden_size}, values, "router");
}

gpu::Tensor load_qkv_bias(gpu::Device& device, const Checkpoint& checkpoint, std::uint32_t layer) {
  std::vector<float> all;
  for (const Projection p : {Projection::q, Projection::k, Projection::v}) {
    const auto values = checkpoint.read_as_f32(bias_tensor_name(layer, p));
    all.insert(all.end(), values.begin(), values.end());
  }
  return device.tensor<float>(DType::f32, {static_cast<std::uint32_t>(all.size())}, all, "bias");
}

// The matrix `index` of those that the projection has; all have one code book.
void write_nf4(Nf4Room& room, const Nf4Source& source, const Nf4Values& values, Projection p, std::uint32_t index, Nf4Matrix& matrix) {
  check<DataError>(index == 0 || matrix.codes == values.codes, "experts", "Some experts of a projection are in NF4 and some in FP4; all must be in one.");
  matrix.codes = values.codes;
  const auto count_largest = [&](std::span<const float> absmax) {
    matrix.largest = std::max(index == 0 ? 0.0f : matrix.largest, *std::max_element(absmax.begin(), absmax.end()));
  };
  const Nf4Matrix& to = room.projections()[static_cast<std::size_t>(p)];
  room.write(to.packed, std::as_bytes(std::span(values.packed)), index * values.packed.size());
  if (to.absmax) {
    room.write(to.absmax, std::as_bytes(std::span(values.absmax)), index * values.absmax.size_bytes());
    return count_largest(values.absmax);
  }
  const DoubleQuantized scales = double_quantized(values.absmax, source.bnb);
  room.write_scales(p, index, scales);
  count_largest(decoded(scales));
}

std::shared_ptr<LayerStream> make_stream(gpu::Device& device, const ModelConfig& config, const LoadOptions& options) {
  const std::uint32_t slots = stream_slots(options.residency, config.num_layers, options.stream);
  if (slots == 0) return nullptr;
  const gpu::HostMemory memory = memory_of(device.info(), options.stream);
  auto stream = std::make_shared<LayerStream>(device, config, slots, memory == gpu::HostMemory::carried, options.stream.double_quant);
  if (options.stream.on_disk) {
    stream->keep_on(std::make_unique<DiskLayers>(
        device, DiskLayersOptions{.folder = stream_folder(options.stream), .memory = memory,
                                  .layers = count_of(options.residency, config.num_layers, Residency::streamed),
                                  .layer_bytes = nf4_layer_bytes(config, options.stream.double_quant)}));
  }
  return stream;
}

// Rooms for the projections of layers that stay on the device, in turn.
class ResidentRooms {
 public:
  ResidentRooms(gpu::Device& device, const ModelConfig& config, const LoadOptions& options)
      : rooms_(gpu::tensors_together(device, config.num_layers - count_of(options.residency, config.num_layers, Residency::streamed), DType::u32,
                                     {static_cast<std::uint32_t>(nf4_layer_bytes(config, options.stream.double_quant) / 4)}, "NF4")) {}

  gpu::Tensor next() { return rooms_.at(next_++); }

 private:
  std::vector<gpu::Tensor> rooms_;
  std::size_t next_ = 0;
};

Nf4Room room_of_layer(gpu::Device& device, const ModelConfig& config, const LoadOptions& options, const DeviceWeights& weights, ResidentRooms& resident,
                      bool streamed) {
  const bool double_quant = options.stream.double_quant;
  if (!streamed) return {device, config, resident.next(), double_quant};
  if (options.stream.on_disk) return {device, config, *weights.stream->disk(), weights.stream->slot_room(), double_quant};
  return {device, config, memory_of(device.info(), options.stream), double_quant};
}

// Fills the last layer's projections by `fill`, which gets the room and each matrix, of which it sets the largest scale and the codes.
void fill_projections(gpu::Device& device, const ModelConfig& config, const LoadOptions& options, DeviceWeights& weights, ResidentRooms& resident,
                      const std::function<void(Nf4Room&, Projection, Nf4Matrix&)>& fill) {
  const auto layer = static_cast<std::uint32_t>(weights.layers.size() - 1);
  const bool streamed = residency_of(options.residency, layer) == Residency::streamed;
  Nf4Room room = room_of_layer(device, config, options, weights, resident, streamed);
  LayerProjections& projections = weights.layers.back().projections;
  projections = room.projections();
  for (const Projection p : all_projections) fill(room, p, projections[static_cast<std::size_t>(p)]);
  const gpu::Tensor all = room.finish();
  if (!streamed) return;
  if (options.stream.on_disk) {
    for (Nf4Matrix& matrix : projections) matrix.packed = matrix.absmax = matrix.scale_codes = matrix.scale_blocks = {};
    weights.stream->add_on_disk(layer, projections);
  } else if (options.stream.memory != gpu::HostMemory::direct) {
    weights.stream->add(layer, all, projections);
  }
}

// Every layer's, in the order of loading.
std::vector<Nf4Source> projections_of(const Checkpoint& checkpoint, const ModelConfig& config) {
  std::vector<Nf4Source> sources;
  for (std::uint32_t layer = 0; layer < config.num_layers; ++layer) {
    for (const Projection p : all_projections) {
      const auto [out, in] = projection_dims(config, p);
      for (const std::string& module : module_names(config.experts.count, layer, p)) {
        const std::string name = module + ".weight";
        check<DataError>(std::uint64_t{out} * in % nf4_block == 0, name,
                         "A matrix of {} x {} is no whole number of NF4 blocks of {}.", out, in, nf4_block);
        sources.push_back({checkpoint.at(name), bnb_matrix(checkpoint, name, out, in)});
      }
    }
  }
  return sources;
}

// As many as keep host memory below the largest tensor, with a quarter of it left for pieces that are being read.
std::size_t nf4_buffers(const Checkpoint& checkpoint, std::span<const Nf4Source> projections) {
  constexpr std::size_t most = 8;  // more are never filled
  std::uint64_t largest = 0, largest_nf4 = 1;
  for (const auto& [name, entry] : checkpoint.tensors()) largest = std::max(largest, entry.tensor->bytes);
  for (const auto& source : projections) {
    largest_nf4 = std::max<std::uint64_t>(largest_nf4, nf4_packed_bytes(source.count()) + 4 * nf4_blocks(source.count()));
  }
  return std::clamp<std::uint64_t>(largest / 4 * 3 / largest_nf4, 1, most);
}

// Seconds until it ends, added to `sum`.
class Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum) {}
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  double& sum_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

gpu::Tensor ones(gpu::Device& device, std::uint32_t size) {
  return device.tensor<float>(DType::f32, {size}, std::vector<float>(size, 1.0f), "norm");
}

}  // namespace

DeviceWeights load_weights(gpu::Device& device, const Checkpoint& checkpoint, const ModelConfig& config,
                           const LoadOptions& options) {
  check_checkpoint(checkpoint, config);
  Meter meter(options.progress, checkpoint.total_bytes());
  LoadTimes unused, &times = options.times ? *options.times : unused;
  DeviceWeights weights;
  weights.stream = make_stream(device, config, options);
  if (options.stream.double_quant) weights.scales = std::make_shared<ScaleRoom>(device, config);
  const auto table = [&](std::string_view name, bool on_host) {
    const Stopwatch watch(times.dense);
    const Checkpoint::Entry& entry = checkpoint.at(name);
    Table loaded = upload_table(device, source_of(entry), {.dtype = options.dense_dtype, .form = options.stream.tables, .on_host = on_host,
                                                              .room = options.rows_change ? token_rows_room : 1.0f}, name);
    meter.add(entry.tensor->bytes);
    return loaded;
  };
  const TablePlaces places = table_places(options.stream, config.tie_word_embeddings);
  weights.embedding = table(embedding_tensor_name, places.embedding_on_host);
  if (config.tie_word_embeddings) {
    weights.base_head = weights.embedding;
  } else if (options.head) {
    weights.base_head = table(head_tensor_name, places.head_on_host);
  }
  if (options.head) weights.head = weights.base_head;
  weights.final_norm = load_vector(device, checkpoint, std::string(final_norm_tensor_name));
  const auto projections = projections_of(checkpoint, config);
  ResidentRooms resident(device, config, options);
  std::size_t next = 0;  // of these
  Nf4Reader reader(projections, {.buffers = nf4_buffers(checkpoint, projections)});
  for (std::uint32_t i = 0; i < config.num_layers; ++i) {
    LayerWeights& layer = weights.layers.emplace_back();
    layer.input_norm = load_vector(device, checkpoint, norm_tensor_name(i, Norm::input));
    layer.post_attention_norm = load_vector(device, checkpoint, norm_tensor_name(i, Norm::post_attention));
    if (config.family.qk_norm) {
      layer.q_norm = load_vector(device, checkpoint, norm_tensor_name(i, Norm::q));
      layer.k_norm = load_vector(device, checkpoint, norm_tensor_name(i, Norm::k));
    }
    if (config.family.qkv_bias) layer.qkv_bias = load_qkv_bias(device, checkpoint, i);
    if (config.has_experts()) layer.router = load_router(device, checkpoint, config, i);
    fill_projections(device, config, options, weights, resident, [&](Nf4Room& room, Projection p, Nf4Matrix& matrix) {
      for (std::uint32_t index = 0; index < matrices_of(config, p); ++index) {
        const Nf4Source& source = projections[next++];
        const Nf4Values values = reader.next();
        {
          const Stopwatch watch(times.upload);
          write_nf4(room, source, values, p, index, matrix);
        }
        meter.add(source.entry.tensor->bytes);
      }
    });
  }
  times.read += reader.times().read;
  times.quantize += reader.times().quantize;
  if (options.progress) options.progress(1.0);
  return weights;
}

DeviceWeights made_up_weights(gpu::Device& device, const ModelConfig& config, const LoadOptions& options) {
  const TablePlaces places = table_places(options.stream, config.tie_word_embeddings);
  const auto table = [&](bool on_host) {
    return made_up_table(device, config.vocab_size, config.hidden_size,
                         {.dtype = options.dense_dtype, .form = options.stream.tables, .on_host = on_host});
  };
  DeviceWeights weights;
  weights.stream = make_stream(device, config, options);
  if (options.stream.double_quant) weights.scales = std::make_shared<ScaleRoom>(device, config);
  weights.embedding = table(places.embedding_on_host);
  weights.base_head = config.tie_word_embeddings ? weights.embedding : table(places.head_on_host);
  weights.head = weights.base_head;
  weights.final_norm = ones(device, config.hidden_size);
  ResidentRooms resident(device, config, options);
  for (std::uint32_t i = 0; i < config.num_layers; ++i) {
    LayerWeights& layer = weights.layers.emplace_back();
    layer.input_norm = ones(device, config.hidden_size);
    layer.post_attention_norm = ones(device, config.hidden_size);
    if (config.family.qk_norm) {
      layer.q_norm = ones(device, config.head_dim);
      layer.k_norm = ones(device, config.head_dim);
    }
    if (config.family.qkv_bias) {
      layer.qkv_bias = ones(device, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim);
    }
    if (config.has_experts()) {
      std::vector<float> router(std::size_t{config.experts.count} * config.hidden_size);
      Rng rng(i);
      for (float& value : router) value = rng.uniform(-0.035f, 0.035f);
      layer.router = device.tensor<float>(DType::f32, {config.experts.count, config.hidden_size}, router, "router");
    }
    fill_projections(device, config, options, weights, resident, [&](Nf4Room& room, Projection, Nf4Matrix& matrix) {
      matrix.largest = 0.06f;
      const auto write = [&](const gpu::Tensor& part, std::span<const std::byte> bytes, std::uint64_t first) { room.write(part, bytes, first); };
      fill_random(matrix.packed, any_word, write);
      if (matrix.absmax) return fill_random(matrix.absmax, scale_words(matrix.largest), write);
      // Double-quantised ones from 0.04 on and below the largest.
      fill_random(matrix.scale_codes, any_word, write);
      std::vector<float> blocks(matrix.scale_blocks.size(), 0.05f);
      for (std::size_t at = 0; at < blocks.size(); at += 2) blocks[at] = 0.0099f;
      room.write(matrix.scale_blocks, std::as_bytes(std::span(blocks)));
    });
  }
  return weights;
}

}  // namespace nibble
