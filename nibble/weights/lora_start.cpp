#include "nibble/weights/lora_start.h"

#include "nibble/base/error.h"
#include "nibble/quant/low_rank.h"
#include "nibble/quant/nf4.h"

#include <charconv>
#include <cmath>

namespace nibble {
namespace {

// The halves of `w`'s principal part, with the scaling taken out of them.
LoraMatrices principal(std::span<const float> w, ProjectionDims dims, const LoraModule& module, const LoraStart& start) {
  const LowRank found = low_rank(w, dims.out, dims.in, {.rank = module.rank, .iterations = start.svd_iterations, .seed = start.seed});
  LoraMatrices lora{.a = found.right, .b = found.left, .magnitude = {}};
  const auto factor = static_cast<float>(1 / std::sqrt(module.scaling));
  for (float& value : lora.a) value *= factor;
  for (float& value : lora.b) value *= factor;
  return lora;
}

// w - scaling * B A
std::vector<float> residual(std::span<const float> w, ProjectionDims dims, const LoraMatrices& lora, const LoraModule& module) {
  std::vector<float> rest(w.begin(), w.end());
  for (std::size_t row = 0; row < dims.out; ++row) {
    for (std::size_t k = 0; k < module.rank; ++k) {
      const auto factor = static_cast<float>(module.scaling) * lora.b[row * module.rank + k];
      const float* a = lora.a.data() + k * dims.in;
      float* to = rest.data() + row * dims.in;
      for (std::size_t i = 0; i < dims.in; ++i) to[i] -= factor * a[i];
    }
  }
  return rest;
}

void quantise(std::span<const float> values, StartedMatrix& to, std::string_view name) {
  to.packed.resize(nf4_packed_bytes(values.size()));
  to.absmax.resize(nf4_blocks(values.size()));
  nf4_quantize(DType::f32, std::as_bytes(values), to.packed, to.absmax, {.name = name});
}

void start_loftq(std::span<const float> w, ProjectionDims dims, const LoraModule& module, const LoraStart& start, std::string_view name,
                 StartedMatrix& result) {
  std::vector<float> rest(w.begin(), w.end()), base(w.size());
  for (std::uint32_t round = 0; round < start.loftq_rounds; ++round) {
    quantise(rest, result, name);
    nf4_dequantize(result.packed, result.absmax, base);
    for (std::size_t i = 0; i < base.size(); ++i) base[i] = w[i] - base[i];
    result.lora = principal(base, dims, module, start);
    rest = residual(w, dims, result.lora, module);
  }
}

// (first; second) or (first, second), row by row
std::vector<float> beside(const std::vector<float>& first, const std::vector<float>& second, std::size_t columns, float factor) {
  std::vector<float> both;
  both.reserve(2 * first.size());
  for (std::size_t at = 0; at < first.size(); at += columns) {
    both.insert(both.end(), first.begin() + static_cast<std::ptrdiff_t>(at), first.begin() + static_cast<std::ptrdiff_t>(at + columns));
    for (std::size_t i = at; i < at + columns; ++i) both.push_back(factor * second[i]);
  }
  return both;
}

}  // namespace

LoraStart lora_start_of(std::string_view name) {
  constexpr std::string_view counted = "pissa_niter_";
  if (name == "pissa") return {};
  if (name == "loftq") return {.kind = LoraStartKind::loftq};
  LoraStart start;
  const std::string_view digits = name.starts_with(counted) ? name.substr(counted.size()) : std::string_view();
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), start.svd_iterations);
  check<UsageError>(!digits.empty() && error == std::errc() && end == digits.data() + digits.size() && start.svd_iterations <= 100, "--init-lora-weights",
                    "\"{}\" cannot be taken; there are pissa, pissa_niter_N with N up to 100, and loftq.", name);
  return start;
}

std::string_view folder_of(LoraStartKind kind) { return kind == LoraStartKind::pissa ? "pissa_init" : "loftq_init"; }

StartedMatrix start_matrix(std::span<const float> w, ProjectionDims dims, const LoraModule& module, const LoraStart& start, std::string_view name) {
  StartedMatrix result;
  if (!module.used()) {
    quantise(w, result, name);
    return result;
  }
  check<UsageError>(module.scaling > 0, name, "The scaling is {}; a start of this kind needs one above 0.", module.scaling);
  check<UsageError>(module.rank <= std::min(dims.out, dims.in), name, "The rank is {}; a matrix of {} x {} has at most {}.", module.rank, dims.out, dims.in,
                    std::min(dims.out, dims.in));
  if (start.kind == LoraStartKind::loftq) {
    start_loftq(w, dims, module, start, name, result);
  } else {
    result.lora = principal(w, dims, module, start);
    quantise(residual(w, dims, result.lora, module), result, name);
  }
  return result;
}

LoraAdapter without_start(const LoraAdapter& trained, const LoraAdapter& first) {
  const LoraModules modules = trained.modules(), begun = first.modules();
  check<DataError>(!trained.config.use_dora && !first.config.use_dora, "start", "An adapter of DoRA cannot be made one for the original weights.");
  LoraAdapter result = trained;
  LoraConfig& config = result.config;
  const double alpha = config.use_rslora ? std::sqrt(2.0) : 2.0;
  config.rank *= 2, config.lora_alpha *= alpha;
  for (auto& [key, rank] : config.rank_pattern) rank *= 2;
  for (auto& [key, value] : config.alpha_pattern) value *= alpha;
  for (std::uint32_t layer = 0; layer < modules.size(); ++layer) {
    for (const Projection p : all_projections) {
      const auto i = static_cast<std::size_t>(p);
      const LoraModule &now = modules[layer][i], &then = begun[layer][i];
      check<DataError>(now.rank == then.rank && now.scaling == then.scaling, projection_module_name(layer, p),
                       "The adapter has rank {} and scaling {} here, its start {} and {}; they must be the same.", now.rank, now.scaling, then.rank,
                       then.scaling);
      if (!now.used()) continue;
      const LoraMatrices &lora = trained.at(layer, p), &start = first.at(layer, p);
      result.at(layer, p).a = beside(lora.a, start.a, lora.a.size(), 1);
      result.at(layer, p).b = beside(lora.b, start.b, now.rank, -1);
    }
  }
  return result;
}

}  // namespace nibble
