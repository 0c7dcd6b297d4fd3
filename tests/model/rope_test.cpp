#include "nibble/model/rope.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

namespace nibble::rope_test {
namespace {

// Frequencies that transformers 5.24 gives for heads of 64 (ROPE_INIT_FUNCTIONS), at these places.
constexpr std::array<std::size_t, 13> places{0, 5, 8, 11, 12, 14, 15, 16, 17, 18, 20, 24, 31};
using Frequencies = std::array<float, places.size()>;

void expect_frequencies(const RopeConfig& rope, const Frequencies& expected) {
  const auto got = rope_frequencies(rope, 64);
  ASSERT_EQ(got.size(), 32u);
  // Both take powers in f32 and round a few steps more: an ulp or two.
  for (std::size_t i = 0; i < places.size(); ++i) EXPECT_NEAR(got[places[i]] / expected[i], 1.0f, 3 * 0x1p-24f) << places[i];
}

TEST(Rope, Llama3) {
  expect_frequencies({.kind = RopeConfig::Kind::llama3, .theta = 500000, .factor = 32, .original_positions = 8192, .low_freq_factor = 1,
                      .high_freq_factor = 4},
                     {0x1p+0f, 0x1.078d4p-3f, 0x1.34119p-5f, 0x1.681adap-7f, 0x1.ddee9ep-8f, 0x1.a4ee4p-9f, 0x1.524f36p-10f,
                      0x1.c26c4p-12f, 0x1.9731eep-14f, 0x1.46831ap-16f, 0x1.1f91fp-17f, 0x1.be2188p-20f, 0x1.94836p-24f});
}

TEST(Rope, Linear) {
  expect_frequencies({.kind = RopeConfig::Kind::linear, .theta = 10000, .factor = 4},
                     {0x1p-2f, 0x1.e5a846p-5f, 0x1.99999ap-6f, 0x1.59742ap-7f, 0x1.030dc6p-7f, 0x1.235a72p-8f, 0x1.b4f7e4p-9f,
                      0x1.47ae14p-9f, 0x1.eb736p-10f, 0x1.708938p-10f, 0x1.9e7c7p-11f, 0x1.0624dep-12f, 0x1.17a8e4p-15f});
}

TEST(Rope, Yarn) {
  expect_frequencies({.kind = RopeConfig::Kind::yarn, .theta = 1000000, .factor = 4, .original_positions = 32768},
                     {0x1p+0f, 0x1.d8ffacp-4f, 0x1.030dc6p-5f, 0x1.1bc25ap-7f, 0x1.51d31ep-8f, 0x1.d23b26p-10f, 0x1.0d1f26p-10f,
                      0x1.31d5aep-11f, 0x1.547688p-12f, 0x1.707be8p-13f, 0x1.74eea6p-15f, 0x1.094564p-17f, 0x1.9d5ef2p-22f});
  expect_frequencies({.kind = RopeConfig::Kind::yarn, .theta = 10000, .factor = 16, .original_positions = 4096, .beta_fast = 20,
                      .beta_slow = 2, .truncate = false},
                     {0x1p+0f, 0x1.e5a846p-3f, 0x1.99999ap-4f, 0x1.59742ap-5f, 0x1.030dc6p-5f, 0x1.c55188p-7f, 0x1.20bbd4p-7f,
                      0x1.643d4ap-8f, 0x1.a3199cp-9f, 0x1.c7cf6p-10f, 0x1.f03e7cp-13f, 0x1.0624dep-14f, 0x1.17a8e4p-17f});
}

TEST(Rope, YarnScalesCosinesAndSines) {
  ModelConfig config;
  config.head_dim = 64;
  config.rope = {.kind = RopeConfig::Kind::yarn, .theta = 10000, .factor = 4, .original_positions = 4096, .attention_factor = 1.25};
  const auto table = rope_table(2, config);
  ASSERT_EQ(table.size(), 2u * 32 * 2);
  EXPECT_EQ(table[0], 1.25f);
  EXPECT_EQ(table[1], 0.0f);
  EXPECT_NEAR(table[64], 1.25f * std::cos(1.0f), 1e-6f);
}

}  // namespace
}  // namespace nibble::rope_test
