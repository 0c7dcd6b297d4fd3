#include "nibble/model/next_token.h"

#include <algorithm>

namespace nibble {

std::uint32_t next_token(Generator& generator, TokenSampler& sampler, std::span<const std::uint32_t> text) {
  TokenSampler* const one = &sampler;
  const Generator::Text place{0, text};
  return next_tokens(generator, {&one, 1}, {&place, 1}).front();
}

std::vector<std::uint32_t> next_tokens(Generator& generator, std::span<TokenSampler* const> samplers, std::span<const Generator::Text> texts) {
  std::vector<std::uint32_t> tokens;
  const std::uint32_t known = generator.best_known();
  if (!std::all_of(samplers.begin(), samplers.end(), [&](const TokenSampler* sampler) { return sampler->looks_at_few(known); })) {
    const auto logits = generator.all_logits(texts);
    for (std::size_t i = 0; i < texts.size(); ++i) tokens.push_back(samplers[i]->next(logits[i], texts[i].tokens));
    return tokens;
  }
  const std::vector<Generator::Next> all = generator.next(texts, texts.size() == 1 ? samplers[0]->foreseen(known) : std::nullopt);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const Generator::Next& next = all[i];
    std::optional<std::uint32_t> token;
    if (next.logits.empty()) token = samplers[i]->next(next.best, texts[i].tokens);
    if (!token) token = samplers[i]->next(next.logits.empty() ? generator.read_logits(texts[i].sequence) : next.logits, texts[i].tokens);
    tokens.push_back(*token);
  }
  return tokens;
}

}  // namespace nibble
