#pragma once

#include "nibble/gpu/recorder.h"

#include <cstdint>
#include <span>

namespace nibble {

// A batch as the model takes it: T tokens of one or more segments, each attending to itself alone, and the R positions whose
// next token counts in the loss. Nothing is padded.
struct TokenStream {
  std::span<const std::uint32_t> tokens;         // (T)
  std::span<const std::uint32_t> position;       // (T) within the segment
  std::span<const std::uint32_t> segment_begin;  // (T) first token of the token's segment
  std::span<const std::uint32_t> segment_end;    // (T) one past its last
  std::span<const std::uint32_t> label_rows;     // (R) increasing
  std::span<const std::uint32_t> labels;         // (R) the token to predict there
  // Of P pairs of answers: where the labels of chosen and rejected ones begin in turn, and their end (2P + 1), and what the
  // reference of DPO gives them (2P). Empty for others.
  std::span<const std::uint32_t> sides = {};
  std::span<const float> reference = {};
};

// The same on the device.
struct DeviceStream {
  std::uint32_t tokens = 0, labels = 0;
  std::uint64_t pairs = 0;  // of a query and a key that meet
  gpu::Tensor token_ids, position, segment_begin, segment_end;
  // (T) token i meets the keys of [key_begin[i], key_end[i]), up to itself, and key j the queries up to query_end[j]: of its
  // segment, as far as a sliding window reaches.
  gpu::Tensor key_begin, key_end, query_end;
  // Where bounds count rows of a cache and none before the stream's is met: the same within the stream.
  gpu::Tensor own_key_begin, own_key_end;
  gpu::Tensor label_rows, label_ids;
  gpu::Tensor sides, reference;  // of pairs; see TokenStream
};

// Buffers for streams of up to `max_tokens` tokens.
class StreamBuffers {
 public:
  // With a sliding window of so many keys; 0: none.
  StreamBuffers(gpu::Device& device, std::uint32_t max_tokens, std::uint32_t sliding_window);

  // Submits what was recorded, since that may still read the last stream, and uploads this one.
  DeviceStream upload(gpu::Recorder& recorder, const TokenStream& stream) const;

 private:
  DeviceStream room_;
  std::uint32_t max_tokens_, sliding_window_;
};

}  // namespace nibble
