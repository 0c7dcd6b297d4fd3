// bench_nf4: decoding NF4 into f16, as a step does it before each product: the joint weights of a Qwen3-4B layer, in rows and in tiles of
// the weight and of its transpose. Values at random places are compared with the code book first. Without timestamps; each
// dispatch waits for the one before it.

#include "bench/timing.h"
#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/base/nf4_table.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/nf4.h"

#include <cmath>
#include <cstdio>
#include <exception>
#include <vector>

namespace nibble::bench {
namespace {

struct Form {
  const char* name;
  std::uint32_t tile;
  bool turned;
};
constexpr std::uint32_t copies = 4;  // so that none is found in the cache
constexpr float largest = 1.0f;  // of absmax, and so the scale of what is decoded

struct Made {
  std::vector<std::uint8_t> codes;  // two a byte
  std::vector<float> absmax;
};

Made make_up(std::uint32_t out, std::uint32_t in) {
  Rng rng(std::uint64_t{out} * in);
  Made made{.codes = std::vector<std::uint8_t>(std::size_t{out} * in / 2), .absmax = std::vector<float>(std::size_t{out} * in / 64)};
  for (std::uint8_t& byte : made.codes) byte = static_cast<std::uint8_t>(rng.below(256));
  for (float& scale : made.absmax) scale = rng.uniform(0.01f, largest);
  return made;
}

std::size_t place_of(const Form& form, std::uint32_t out, std::uint32_t in, std::uint32_t row, std::uint32_t column) {
  if (form.tile == 0) return std::size_t{row} * in + column;
  const std::uint32_t columns = form.turned ? out : in, tile = form.tile;
  if (form.turned) std::swap(row, column);
  return (std::size_t{row / tile} * (columns / tile) + column / tile) * tile * tile + row % tile * tile + column % tile;
}

bool is_right(gpu::Device& device, const Made& made, const Form& form, std::uint32_t out, std::uint32_t in, const Tensor& decoded) {
  const auto bits = device.read<std::uint16_t>(decoded);
  Rng rng(7);
  for (int i = 0; i < 1000; ++i) {
    const std::uint32_t row = rng.below(out), column = rng.below(in);
    const std::size_t element = std::size_t{row} * in + column;
    const std::uint8_t byte = made.codes[element / 2];
    const double value = static_cast<double>(nf4_codes[element % 2 ? byte & 15 : byte >> 4]) * made.absmax[element / 64];
    if (std::abs(f16_to_f32(bits[place_of(form, out, in, row, column)]) - value) > std::abs(value) * 0x1p-11 + 0x1p-25) return false;
  }
  return true;
}

bool run(gpu::Device& device, const char* name, std::uint32_t out, std::uint32_t in) {
  const Made made = make_up(out, in);
  std::vector<Nf4> weights;
  std::vector<Tensor> rooms;
  for (std::uint32_t i = 0; i < copies; ++i) {
    weights.push_back({.packed = device.tensor<std::uint8_t>(DType::u8, {out * in / 2}, made.codes, "codes"),
                       .absmax = device.tensor<float>(DType::f32, {out * in / 64}, made.absmax, "absmax")});
    rooms.push_back(device.tensor(DType::f16, {out, in}, "decoded"));
  }
  bool all_right = true;
  for (const Form& form : {Form{"rows", 0, false}, Form{"tiles", 16, false}, Form{"turned tiles", 16, true}}) {
    std::uint32_t next = 0;
    const auto decode = [&](gpu::Recorder& recorder) {
      const std::uint32_t i = next++ % copies;
      record(recorder, DequantizeNf4{.w = weights[i], .out = {.data = rooms[i], .scale = largest, .tile = form.tile, .turned = form.turned}});
    };
    {
      gpu::Recorder recorder(device);
      decode(recorder);
      recorder.submit();
    }
    const bool right = is_right(device, made, form, out, in, rooms[0]);
    const double seconds = seconds_of(device, decode), bytes = static_cast<double>(out) * in * (0.5 + 4.0 / 64 + 2);
    std::printf("%-8s %5u x %5u  %-12s %7.1f us %6.0f GB/s  %s\n", name, out, in, form.name, seconds * 1e6, bytes / seconds * 1e-9, right ? "ok" : "WRONG");
    all_right &= right;
  }
  return all_right;
}

}  // namespace
}  // namespace nibble::bench

int main() try {
  nibble::gpu::Device device;
  std::printf("%s\n", device.info().name.c_str());
  bool right = nibble::bench::run(device, "qkv", 6144, 2560);
  right &= nibble::bench::run(device, "o", 2560, 4096);
  right &= nibble::bench::run(device, "gate_up", 19456, 2560);
  right &= nibble::bench::run(device, "down", 2560, 9728);
  return right ? 0 : 3;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 3;
}
