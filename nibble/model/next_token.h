#pragma once

#include "nibble/model/generator.h"
#include "nibble/model/sampler.h"

namespace nibble {

// The token that follows a text in place 0 of the generator. All logits are read back only where the sampler needs them.
std::uint32_t next_token(Generator& generator, TokenSampler& sampler, std::span<const std::uint32_t> text);

// The same of several texts, each with the sampler at its index.
std::vector<std::uint32_t> next_tokens(Generator& generator, std::span<TokenSampler* const> samplers, std::span<const Generator::Text> texts);

}  // namespace nibble
