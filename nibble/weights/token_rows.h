#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/io/checkpoint.h"
#include "nibble/weights/peft.h"

namespace nibble {

// Tokens whose rows an adapter is to train.
struct TokensToTrain {
  std::vector<std::uint32_t> ids;
  std::vector<std::uint32_t> fresh = {};  // of these, those whose rows begin at the mean of the rows below `known`, as new tokens' do
  std::uint32_t known = 0;
  bool head = false;  // the rows of a head that is not tied, too
};

// Gives the adapter rows of those tokens that it has none of yet: the base's own, or the mean.
void add_token_rows(LoraAdapter& adapter, const Checkpoint& base, const ModelConfig& config, const TokensToTrain& tokens);

}  // namespace nibble
