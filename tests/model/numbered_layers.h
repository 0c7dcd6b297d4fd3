#pragma once

#include "nibble/weights/layer_stream.h"
#include "nibble/weights/nf4_room.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <gtest/gtest.h>

#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

namespace nibble::test {

// A stream of layers of which all words are the layer's number, so that what is sent is seen. A fixture makes `stream`.
class NumberedLayers : public testing::Test {
 protected:
  // Writes the layer's words into its room and returns its projections.
  static LayerProjections write_number(Nf4Room& room, std::uint32_t layer) {
    LayerProjections projections = room.projections();
    for (Nf4Matrix& matrix : projections) {
      matrix.largest = static_cast<float>(layer);
      for (const gpu::Tensor& part : {matrix.packed, matrix.absmax}) {
        const std::vector<std::uint32_t> words(part.size(), layer);
        room.write(part, std::as_bytes(std::span(words)));
      }
    }
    return projections;
  }

  // Asks as a layer does, four times, and keeps what kernels recorded there would read.
  void use(std::uint32_t layer) {
    for (int i = 0; i < 4; ++i) {
      const LayerProjections& found = stream->projections(recorder, layer);
      for (const Projection p : {Projection::q, Projection::down}) {
        const Nf4Matrix& matrix = found[static_cast<std::size_t>(p)];
        ASSERT_EQ(matrix.largest, static_cast<float>(layer));
        seen.push_back({device().tensor(DType::u32, {1}, "seen"), layer});
        recorder.copy(matrix.packed.part(matrix.packed.size() - 1, {1}), seen.back().first);
      }
    }
  }

  // Up and down again, where each layer asks twice as often with `again`.
  void step(const std::vector<std::uint32_t>& which, bool again = false) {
    stream->go(LayerOrder::up);
    for (const std::uint32_t layer : which) use(layer);
    stream->go(LayerOrder::down);
    for (auto layer = which.rbegin(); layer != which.rend(); ++layer) {
      if (again) use(*layer);
      use(*layer);
    }
  }

  // In any order, under any announced one.
  void use_at_random(const std::vector<std::uint32_t>& which, std::uint64_t seed) {
    Rng rng(seed);
    for (int i = 0; i < 60; ++i) {
      stream->go(static_cast<LayerOrder>(rng.below(3)));
      use(which[rng.below(static_cast<std::uint32_t>(which.size()))]);
      if (rng.below(8) == 0) recorder.submit();
    }
    expect_seen();
  }

  void expect_seen() {
    recorder.submit();
    for (const auto& [word, layer] : seen) ASSERT_EQ(device().read<std::uint32_t>(word)[0], layer);
    seen.clear();
  }

  void expect_refused(std::uint32_t layer) {
    EXPECT_FALSE(stream->has(layer));
    expect_error<Error>([&] { stream->projections(recorder, layer); }, fmt::format("Layer {} is not streamed", layer));
  }

  std::uint64_t copies() const { return stream->copied_bytes() / nf4_layer_bytes(config); }

  ModelConfig config = read_model_config(tiny);
  std::unique_ptr<LayerStream> stream;
  gpu::Recorder recorder{device()};
  std::vector<std::pair<gpu::Tensor, std::uint32_t>> seen;
};

}  // namespace nibble::test
