#pragma once

#include <array>
#include <cstdint>

namespace nibble {

// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a counter-based generator, so
// the state of any stream is (key, counter) and a run resumes from two numbers.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

// A stream of random numbers; streams of one seed with different ids are independent.
class Rng {
 public:
  explicit Rng(std::uint64_t seed, std::uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  std::uint32_t next_u32();
  // Uniform in [0, 1), a multiple of 2^-24.
  float uniform();
  float uniform(float low, float high);
  // Standard normal, by Box and Muller.
  float normal();
  // Uniform in [0, bound) without bias; bound > 0.
  std::uint32_t below(std::uint32_t bound);

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t position_ = 0;
  std::array<std::uint32_t, 4> block_{};
};

}  // namespace nibble
