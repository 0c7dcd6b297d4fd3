#pragma once

#include <cstdint>
#include <string_view>

namespace nibble {

// FNV-1a with 64 bits (Fowler, Noll and Vo) over bytes, one after the other.
class Fnv1a64 {
 public:
  void add(std::string_view bytes) {
    for (const char c : bytes) hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace nibble
