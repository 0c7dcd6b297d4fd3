#include "nibble/text/word_cache.h"

#include <functional>

namespace nibble::text {

WordCache::WordCache() {
  for (Shard& shard : shards_) shard.slots.resize(slots_per_shard);
}

bool WordCache::find(std::string_view word, std::vector<WordToken>& out) const {
  const std::size_t hash = std::hash<std::string_view>()(word);
  Shard& shard = shards_[hash % shard_count];
  const std::lock_guard lock(shard.mutex);
  const Slot& slot = shard.slots[hash / shard_count % slots_per_shard];
  if (slot.word != word) return false;
  out.insert(out.end(), slot.tokens.begin(), slot.tokens.end());
  return true;
}

void WordCache::store(std::string_view word, const WordToken* tokens, std::size_t count) const {
  if (word.empty() || word.size() > longest_word) return;
  const std::size_t hash = std::hash<std::string_view>()(word);
  Shard& shard = shards_[hash % shard_count];
  const std::lock_guard lock(shard.mutex);
  Slot& slot = shard.slots[hash / shard_count % slots_per_shard];
  slot.word = word;
  slot.tokens.assign(tokens, tokens + count);
}

}  // namespace nibble::text
