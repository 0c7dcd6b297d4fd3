#include "nibble/text/merge_table.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <queue>

#include "nibble/base/error.h"

namespace nibble::text {
namespace {

constexpr std::uint64_t no_pair = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint32_t no_rank = std::numeric_limits<std::uint32_t>::max();
// Up to here looking at every pair again is quicker than keeping a heap.
constexpr std::size_t short_word = 48;

std::uint64_t pair_of(TokenId left, TokenId right) { return std::uint64_t{left} << 32 | right; }

}  // namespace

MergeTable::MergeTable(std::size_t count) {
  const std::size_t size = std::bit_ceil(std::max<std::size_t>(2 * count, 16));
  entries_.assign(size, {no_pair, {no_rank, 0}});
  shift_ = 64 - std::countr_zero(size);
}

std::size_t MergeTable::slot_of(std::uint64_t pair) const {
  std::size_t slot = pair * 0x9E3779B97F4A7C15u >> shift_;  // Fibonacci hashing
  while (entries_[slot].pair != pair && entries_[slot].pair != no_pair) slot = (slot + 1) & (entries_.size() - 1);
  return slot;
}

void MergeTable::set(TokenId left, TokenId right, Merge merge) {
  const std::uint64_t pair = pair_of(left, right);
  entries_[slot_of(pair)] = {pair, merge};
}

const MergeTable::Merge* MergeTable::find(TokenId left, TokenId right) const {
  const Entry& entry = entries_[slot_of(pair_of(left, right))];
  return entry.pair == no_pair ? nullptr : &entry.merge;
}

void MergeTable::apply(std::vector<WordToken>& word) const {
  if (word.size() < 2) return;
  word.size() <= short_word ? apply_short(word) : apply_long(word);
}

void MergeTable::apply_short(std::vector<WordToken>& word) const {
  std::array<Merge, short_word> merges;  // of each token with its right neighbour
  const auto look_up = [&](std::size_t i) {
    const Merge* merge = find(word[i].id, word[i + 1].id);
    merges[i] = merge == nullptr ? Merge{no_rank, 0} : *merge;
  };
  std::size_t pairs = word.size() - 1;
  for (std::size_t i = 0; i < pairs; ++i) look_up(i);
  while (pairs > 0) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < pairs; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == no_rank) return;
    word[best] = {merges[best].merged, word[best].length + word[best + 1].length};
    word.erase(word.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    --pairs;
    std::copy(merges.begin() + best + 1, merges.begin() + pairs + 1, merges.begin() + best);
    if (best > 0) look_up(best - 1);
    if (best < pairs) look_up(best);
  }
}

void MergeTable::apply_long(std::vector<WordToken>& word) const {
  constexpr std::size_t none = std::numeric_limits<std::size_t>::max();
  struct Candidate {
    std::uint32_t rank;
    TokenId merged;
    std::size_t at;
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  std::vector<std::size_t> previous(word.size());
  std::vector<std::size_t> next(word.size());
  const auto offer = [&](std::size_t left, std::size_t right) {
    if (const Merge* merge = find(word[left].id, word[right].id)) queue.push({merge->rank, merge->merged, left});
  };
  for (std::size_t i = 0; i < word.size(); ++i) {
    previous[i] = i == 0 ? none : i - 1;
    next[i] = i + 1 == word.size() ? none : i + 1;
    if (next[i] != none) offer(i, next[i]);
  }
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const std::size_t right = next[top.at];
    if (word[top.at].length == 0 || right == none) continue;
    // Entries are never taken out of the queue; one whose tokens have changed since is passed over here.
    const Merge* merge = find(word[top.at].id, word[right].id);
    if (merge == nullptr || merge->merged != top.merged) continue;
    word[top.at] = {top.merged, word[top.at].length + word[right].length};
    word[right].length = 0;
    next[top.at] = next[right];
    if (next[right] != none) previous[next[right]] = top.at;
    if (previous[top.at] != none) offer(previous[top.at], top.at);
    if (next[top.at] != none) offer(top.at, next[top.at]);
  }
  std::erase_if(word, [](const WordToken& token) { return token.length == 0; });
}

}  // namespace nibble::text
