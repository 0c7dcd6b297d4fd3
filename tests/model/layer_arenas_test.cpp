#include "nibble/model/layer_arenas.h"

#include "nibble/base/error.h"
#include "tests/support/gpu_test.h"

namespace nibble::layer_arenas_test {
namespace {

// Of 700 KiB, which by itself would take 1 MiB; of 256 KiB, which takes no more than it is.
TEST(LayerArenas, OneBufferHoldsATensorOfAllLayersWhereThatSavesMemory) {
  constexpr std::uint32_t layers = 7, odd = 700 * 1024 / 4, even = 256 * 1024 / 4;
  const std::uint64_t before = test::device().memory().current;
  LayerArenas arenas(test::device(), layers, "test");
  std::vector<gpu::Tensor> odds, evens;
  std::vector<std::vector<float>> values;
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    arenas.begin_layer();
    odds.push_back(arenas.next(DType::f32, {odd}));
    evens.push_back(arenas.next(DType::f32, {even}));
    values.push_back(test::random_values(odd, layer + 1, 1.0f));
    test::device().write(odds.back(), std::as_bytes(std::span(values.back())));
  }
  const std::uint64_t bytes = LayerArenas::bytes(DType::f32, {odd}, layers) + LayerArenas::bytes(DType::f32, {even}, layers);
  EXPECT_EQ(bytes, layers * (700u + 256u) * 1024);
  EXPECT_EQ(test::device().memory().current - before, bytes);
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    EXPECT_EQ(odds[layer].buffer(), odds[0].buffer());
    EXPECT_NE(odds[layer].buffer(), evens[layer].buffer());
    EXPECT_EQ(odds[layer].offset() % 256, 0u);
    EXPECT_EQ(test::device().read<float>(odds[layer]), values[layer]) << layer;
  }
}

TEST(LayerArenas, WhatWasNotAnnouncedIsRefused) {
  constexpr std::uint32_t layers = 7, odd = 700 * 1024 / 4;
  LayerArenas arenas(test::device(), layers, "test");
  EXPECT_THROW(arenas.next(DType::f32, {odd}), Error);
  arenas.begin_layer();
  arenas.next(DType::f32, {odd});
  arenas.begin_layer();
  EXPECT_THROW(arenas.next(DType::f32, {odd - 4096}), Error);
  for (std::uint32_t layer = 2; layer < layers; ++layer) arenas.begin_layer();
  EXPECT_THROW(arenas.begin_layer(), Error);
}

TEST(LayerArenas, TakesNothingOfNoLayers) { EXPECT_EQ(LayerArenas::bytes(DType::f32, {300}, 0), 0u); }

}  // namespace
}  // namespace nibble::layer_arenas_test
