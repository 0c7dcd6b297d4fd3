#include "nibble/train/options.h"

#include "nibble/base/error.h"

#include <charconv>
#include <cmath>

namespace nibble {

MemoryLimit memory_limit_of(std::string_view text, std::string_view option) {
  struct Unit {
    std::string_view name;
    double bytes;
  };
  constexpr Unit units[] = {{"", 1},           {"B", 1},          {"KiB", 0x1p10},   {"MiB", 0x1p20}, {"GiB", 0x1p30},
                            {"TiB", 0x1p40},   {"KB", 1e3},       {"MB", 1e6},       {"GB", 1e9},     {"TB", 1e12}};
  double number = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view unit = text.substr(static_cast<std::size_t>(end - text.data()));
  constexpr std::string_view allowed = "a number above 0 with B, KiB, MiB, GiB, TiB, KB, MB, GB or TB behind it, or 1% to 100%";
  if (failed == std::errc() && std::isfinite(number) && number > 0) {
    if (unit == "%" && number <= 100) return {.part = number / 100};
    for (const Unit& known : units) {
      const double bytes = number * known.bytes;
      if (unit == known.name && bytes >= 1 && bytes < 0x1p62) return {.bytes = static_cast<std::uint64_t>(bytes)};
    }
  }
  fail<UsageError>(option, "\"{}\" is no amount of memory; give {}.", text, allowed);
}

Checkpointing checkpointing_of(std::string_view name) {
  if (name == "off") return Checkpointing::off;
  if (name == "mlp") return Checkpointing::mlp;
  return name == "on" ? Checkpointing::on : Checkpointing::automatic;
}

}  // namespace nibble
