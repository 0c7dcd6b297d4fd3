#include "nibble/gpu/cargo.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <cmath>

namespace nibble::gpu {

std::shared_ptr<Cargo> Cargo::make(const Device& device) {
  auto cargo = std::make_shared<Cargo>();
  device.attached<std::weak_ptr<Cargo>>() = cargo;
  return cargo;
}

std::shared_ptr<Cargo> Cargo::waiting(const Device& device) {
  auto cargo = device.attached<std::weak_ptr<Cargo>>().lock();
  return cargo && cargo->from_ && cargo->from_.bytes() <= device.info().limits.max_binding ? cargo : nullptr;
}

void Cargo::load(Recorder& recorder, const Tensor& from, const Tensor& to, std::uint32_t route) {
  check(from.bytes() == to.bytes() && from.dtype() == DType::u32 && to.dtype() == DType::u32, "cargo",
        "{} bytes were to be moved onto {}.", from.bytes(), to.bytes());
  finish(recorder);
  recorder.device().attached<std::weak_ptr<Cargo>>() = weak_from_this();
  from_ = from;
  to_ = to;
  route_ = route;
  taken_ = 0;
}

std::optional<Cargo::Piece> Cargo::take(double flops, std::uint32_t unit) {
  if (!from_) return {};
  // What a link of 50 GB/s brings while 250 TFLOP/s are computed.
  constexpr double usual_words_a_flop = 0.5e-4;
  offered_ += flops;
  const auto size = static_cast<double>(from_.size());
  const auto expected = expected_.find(route_);
  const double share = expected == expected_.end() ? usual_words_a_flop * flops : size * flops / expected->second;
  const auto left = static_cast<std::uint32_t>(from_.size()) - taken_;
  // Up, so that roundings leave nothing.
  const double units = std::min(std::ceil(share / unit), static_cast<double>(left / unit));
  const std::uint32_t first = taken_, words = static_cast<std::uint32_t>(units) * unit;
  if (words == 0) return {};
  taken_ += words;
  return Piece{from_, to_, first, words};
}

void Cargo::finish(Recorder& recorder) {
  if (!from_) return;
  if (const auto left = static_cast<std::uint32_t>(from_.size()) - taken_; left > 0) {
    recorder.copy(from_.part(taken_, {left}), to_.part(taken_, {left}));
  }
  from_ = to_ = {};
  if (offered_ > 0) expected_[route_] = offered_;
  offered_ = 0;
}

}  // namespace nibble::gpu
