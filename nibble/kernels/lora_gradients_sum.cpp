#include "nibble/kernels/lora_gradients_sum.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <optional>

namespace nibble::detail {
namespace {

constexpr std::uint32_t none = UINT32_MAX, lanes = 128;

// As in the kernel.
struct Kind {
  std::array<LoraSegment, 3> segments{};
  std::array<std::uint32_t, 4> targets{none, none, none, none};
  std::array<float, 3> factors{};
  std::uint32_t first, count, parts, powers, narrow, block, width, n_stride, c_stride;
};

struct LoraGradientsSumParams {
  std::array<Kind, most_lora_sums> kinds{};
  std::uint32_t rank, padded_rank;
  std::array<std::uint32_t, 2> padding{};
};

Kind kind_of(const LoraSum& sum) {
  const LoraParams& p = sum.plan.params;
  return {.segments = p.segments,
          .factors = sum.factors,
          .first = sum.first,
          .count = p.part_size,
          .parts = p.parts,
          .powers = p.powers,
          .narrow = p.narrow_blocks * sum.plan.text.narrow,
          .block = sum.plan.tile.block,
          .width = p.width,
          .n_stride = sum.n_stride,
          .c_stride = sum.c_stride};
}

// One tensor over all targets, if there is one.
std::optional<Tensor> cover(const gpu::Device& device, std::span<const LoraSum> sums) {
  const Tensor* some = nullptr;
  std::uint64_t begin = UINT64_MAX, end = 0;
  for (const LoraSum& sum : sums) {
    for (const Tensor& target : sum.targets) {
      if (!target) continue;
      if (some && some->buffer() != target.buffer()) return std::nullopt;
      some = &target;
      begin = std::min(begin, target.offset());
      end = std::max(end, target.offset() + target.bytes());
    }
  }
  if (!some || end - begin > device.info().limits.max_binding - 16) return std::nullopt;
  return Tensor(some->buffer(), begin, DType::f32, {static_cast<std::uint32_t>((end - begin) / 4)});
}

void dispatch(gpu::Recorder& recorder, const Tensor& scratch, const Tensor& y, const LoraGradientsSumParams& params) {
  std::uint64_t count = 0;
  double bytes = 0;
  for (const Kind& kind : params.kinds) {
    count += kind.count;
    bytes += kind.count * (8.0 + 4.0 * kind.parts);
  }
  const std::array bindings{gpu::read(scratch), gpu::read_write(y)};
  const auto prelude = gpu::Prelude().constant("KINDS", static_cast<std::uint32_t>(most_lora_sums));
  recorder.dispatch_bytes(kernel(recorder.device(), "lora_gradients_sum", prelude, {"grid"}), bindings, std::as_bytes(std::span(&params, 1)),
                          gpu::linear_grid(recorder.device(), (count + lanes - 1) / lanes), {.bytes = bytes});
}

}  // namespace

void record_sums(gpu::Recorder& recorder, const Tensor& scratch, std::span<const LoraSum> sums) {
  check(!sums.empty() && sums.size() <= most_lora_sums, "lora_gradients_sum", "{} sums came; 1 to {} are added up at once.", sums.size(), most_lora_sums);
  LoraGradientsSumParams params{.rank = sums.front().rank, .padded_rank = sums.front().padded_rank};
  if (const auto all = cover(recorder.device(), sums)) {
    for (std::size_t k = 0; k < sums.size(); ++k) {
      params.kinds[k] = kind_of(sums[k]);
      for (std::size_t i = 0; i < 3; ++i) {
        const Tensor& target = sums[k].targets[i];
        if (target) params.kinds[k].targets[i] = static_cast<std::uint32_t>((target.offset() - all->offset()) / 4);
      }
    }
    return dispatch(recorder, scratch, *all, params);
  }
  for (const LoraSum& sum : sums) {
    for (std::size_t i = 0; i < 3; ++i) {
      if (!sum.targets[i]) continue;
      params.kinds[0] = kind_of(sum);
      params.kinds[0].targets[i] = 0;
      dispatch(recorder, scratch, sum.targets[i], params);
    }
  }
}

}  // namespace nibble::detail
