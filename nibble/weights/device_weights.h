#pragma once

#include "nibble/base/nf4_table.h"
#include "nibble/gpu/recorder.h"
#include "nibble/io/checkpoint.h"
#include "nibble/weights/config.h"
#include "nibble/weights/residency.h"
#include "nibble/weights/table.h"

#include <array>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

// The frozen weights on the device: projections as NF4, everything else as stored.
namespace nibble {

// A projection (out, in) as bitsandbytes has it in 4 bits: the flattened matrix in blocks of 64, the first value of a pair in the high
// half of its byte.
struct Nf4Matrix {
  gpu::Tensor packed;  // (out * in / 8) u32, four bytes a word
  gpu::Tensor absmax;  // (out * in / 64) f32; empty where it is kept double-quantised, as the next two say (nibble/quant/double_quant.h)
  gpu::Tensor scale_codes = {};   // (out * in / 64) u8
  gpu::Tensor scale_blocks = {};  // (matrices, blocks of 256 scales of one, 2) f32: largest deviation, and the matrix's offset
  std::uint32_t out = 0, in = 0;  // of experts, which lie one below the other, the rows of all
  float largest = 1.0f;  // of absmax
  CodeBook codes = CodeBook::nf4;
};

using LayerProjections = std::array<Nf4Matrix, 7>;  // by Projection

struct LayerWeights {
  gpu::Tensor input_norm, post_attention_norm;  // (hidden) f32
  gpu::Tensor q_norm, k_norm;                   // (head_dim) f32; empty in families without
  gpu::Tensor qkv_bias;                         // (q's, k's and v's outputs) f32; likewise
  gpu::Tensor router;                           // (experts, hidden) f32; likewise
  // Where they are kept: of a layer that is streamed in host memory; of one that lies on a disk there are no tensors here.
  LayerProjections projections;
  std::array<gpu::Tensor, 7> transposed;        // (in, out) f32, the same de-quantised; of experts (experts * out, in); empty unless asked for

  std::uint32_t experts() const { return router ? router.dim(0) : 0; }
  const Nf4Matrix& projection(Projection p) const { return projections[static_cast<std::size_t>(p)]; }
  const gpu::Tensor& cached(Projection p) const { return transposed[static_cast<std::size_t>(p)]; }
};

class LayerStream;
class ScaleRoom;
enum class LayerOrder : std::uint8_t;

struct DeviceWeights {
  Table embedding;  // (vocab, hidden)
  Table head;       // (vocab, hidden); the embedding itself where the model ties them, unless an adapter brings its own
  Table base_head;  // that of the model alone; empty where it is not loaded
  gpu::Tensor final_norm;
  std::vector<LayerWeights> layers;
  std::shared_ptr<LayerStream> stream;  // of the layers whose weights are sent to the device; null where there are none
  std::shared_ptr<ScaleRoom> scales;    // where double-quantised scales are decoded; null where none are

  // A layer's projections as kernels recorded from here on can read them: where it is streamed or its scales are double-quantised,
  // until another layer is asked for.
  const LayerProjections& projections(gpu::Recorder& recorder, std::uint32_t layer) const;
  // The same to be read back by gpu::Device::read, their scales as they are kept.
  const LayerProjections& stored(gpu::Device& device, std::uint32_t layer) const;
  // Says in which order layers will be asked for, so that the next one can be on its way (layer_stream.h).
  void go(LayerOrder order) const;
};

// Where the time of loading went: seconds summed over the threads that did it.
struct LoadTimes {
  double read = 0, quantize = 0;  // of the projections
  double dense = 0;               // embedding and head: reading, converting and uploading
  double upload = 0;              // of the projections, on the thread that has the device
};

struct LoadOptions {
  DType dense_dtype = DType::f32;  // of embedding and head: f32 or f16
  bool rows_change = false;        // embedding and head in f16 get a scale with room for rows that are written later (token_rows_room)
  bool head = true;                // false leaves out a head that is not tied, and `head` empty
  std::vector<Residency> residency = {};  // by layer: those that are streamed go to host memory and to no other
  StreamOptions stream = {};
  // Called now and then with the part of the checkpoint's bytes that is done, from 0 to 1.
  std::function<void(double)> progress;
  LoadTimes* times = nullptr;  // filled where it is given
};

// Reads, quantises and uploads. Host memory in use, beside that of streamed layers, stays below the largest single tensor. Throws DataError that names file
// and tensor where the checkpoint does not fit the config.
DeviceWeights load_weights(gpu::Device& device, const Checkpoint& checkpoint, const ModelConfig& config,
                           const LoadOptions& options = {});

// Made-up weights of the right shapes and sizes, for measuring without files.
DeviceWeights made_up_weights(gpu::Device& device, const ModelConfig& config, const LoadOptions& options);

}  // namespace nibble
