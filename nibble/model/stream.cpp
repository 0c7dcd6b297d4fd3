#include "nibble/model/stream.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

namespace nibble {

StreamBuffers::StreamBuffers(gpu::Device& device, std::uint32_t max_tokens, std::uint32_t sliding_window)
    : max_tokens_(max_tokens), sliding_window_(sliding_window) {
  const auto make = [&](std::initializer_list<gpu::Tensor*> tensors) {
    for (gpu::Tensor* tensor : tensors) *tensor = device.tensor(DType::u32, {max_tokens}, "stream");
  };
  make({&room_.token_ids, &room_.position, &room_.segment_begin, &room_.segment_end, &room_.key_end, &room_.label_rows, &room_.label_ids});
  if (sliding_window_ > 0) make({&room_.key_begin, &room_.query_end});
  std::vector<std::uint32_t> ends(max_tokens);
  std::iota(ends.begin(), ends.end(), 1u);
  device.write(room_.key_end, std::as_bytes(std::span(ends)));
}

namespace {

// Pairs are few, and not every run has them: room is made for each batch.
void upload_pairs(gpu::Device& device, const TokenStream& stream, DeviceStream& result) {
  const auto sides = static_cast<std::uint32_t>(stream.sides.size() - 1);
  check(sides > 0 && sides % 2 == 0 && stream.sides.front() == 0 && stream.sides.back() == stream.labels.size() &&
            std::adjacent_find(stream.sides.begin(), stream.sides.end(), std::greater_equal<>()) == stream.sides.end(),
        "stream", "The sides of the pairs do not divide the {} labels into two answers each.", stream.labels.size());
  check(stream.reference.empty() || stream.reference.size() == sides, "stream",
        "There are {} log-probabilities of the reference for {} answers.", stream.reference.size(), sides);
  result.sides = device.tensor<std::uint32_t>(DType::u32, {sides + 1}, stream.sides, "sides");
  if (!stream.reference.empty()) result.reference = device.tensor<float>(DType::f32, {sides}, stream.reference, "reference");
}

}  // namespace

DeviceStream StreamBuffers::upload(gpu::Recorder& recorder, const TokenStream& stream) const {
  const auto tokens = static_cast<std::uint32_t>(stream.tokens.size());
  const auto labels = static_cast<std::uint32_t>(stream.labels.size());
  check(tokens > 0 && tokens <= max_tokens_, "stream", "A batch of {} tokens came; room was made for 1 to {}.", tokens,
        max_tokens_);
  check(stream.position.size() == tokens && stream.segment_begin.size() == tokens && stream.segment_end.size() == tokens &&
            stream.label_rows.size() == labels && labels <= tokens,
        "stream", "The arrays of the batch differ in length.");
  recorder.submit();

  DeviceStream result{.tokens = tokens, .labels = labels};
  const std::uint32_t window = sliding_window_ > 0 ? sliding_window_ : UINT32_MAX;
  for (const std::uint32_t position : stream.position) result.pairs += std::min(position + 1, window);
  const auto put = [&](const gpu::Tensor& room, std::span<const std::uint32_t> values) {
    // A batch without labels still binds something.
    const gpu::Tensor view = room.view({std::max<std::uint32_t>(1, static_cast<std::uint32_t>(values.size()))});
    if (!values.empty()) recorder.device().write(view, std::as_bytes(values));
    return view;
  };
  result.token_ids = put(room_.token_ids, stream.tokens);
  result.position = put(room_.position, stream.position);
  result.segment_begin = put(room_.segment_begin, stream.segment_begin);
  result.segment_end = put(room_.segment_end, stream.segment_end);
  result.key_begin = result.segment_begin;
  result.key_end = room_.key_end.view({tokens});
  result.query_end = result.segment_end;
  if (sliding_window_ > 0) {
    std::vector<std::uint32_t> begin(tokens), end(tokens);
    for (std::uint32_t i = 0; i < tokens; ++i) {
      begin[i] = std::max(stream.segment_begin[i], i + 1 - std::min(i + 1, window));
      end[i] = static_cast<std::uint32_t>(std::min<std::uint64_t>(stream.segment_end[i], std::uint64_t{i} + window));
    }
    result.key_begin = put(room_.key_begin, begin);
    result.query_end = put(room_.query_end, end);
  }
  result.label_rows = put(room_.label_rows, stream.label_rows);
  result.label_ids = put(room_.label_ids, stream.labels);
  if (!stream.sides.empty()) upload_pairs(recorder.device(), stream, result);
  return result;
}

}  // namespace nibble
