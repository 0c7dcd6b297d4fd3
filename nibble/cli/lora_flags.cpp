#include "nibble/cli/lora_flags.h"

#include "nibble/base/error.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace nibble::cli {

void LoraFlags::add_to(CLI::App& group, LoraConfig& lora) {
  group.add_option("--lora-rank", lora.rank, "Rank r of the adapters")->capture_default_str()->check(CLI::Range(1, 256));
  group.add_option("--lora-alpha", lora.lora_alpha, "Scale: alpha / r, or alpha / sqrt(r) with --use-rslora")->capture_default_str();
  group.add_flag("--use-rslora", lora.use_rslora, "Rank-stabilised scale");
  group.add_option("--target-modules", target_modules,
                   "Projections to adapt: auto (all; of mixtures of experts those of attention), all-linear, any of q_proj k_proj v_proj\n"
                   "o_proj gate_proj up_proj down_proj, or a regular expression for whole names, as 'model.layers.[0-9]*[02468].(self_attn|mlp).*_proj'")
      ->delimiter(',')
      ->default_str("auto");
}

// A text with anything but names and commas is a pattern; commas in it parted it.
void LoraFlags::finish(LoraConfig& lora) const {
  lora.target_pattern.clear();
  lora.target_modules.clear();
  const std::string all = fmt::format("{}", fmt::join(target_modules, ","));
  if (all.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_-,") != all.npos) {
    check<UsageError>(lora.layers_to_transform.empty(), "--target-modules",
                      "A pattern names layers itself; leave --layers-to-transform out, as PEFT does not take both.");
    lora.target_pattern = all;
  }
  for (const std::string& name : target_modules) {
    if (name == "all-linear" || name == "auto" || !lora.target_pattern.empty()) {
      lora.target_modules.assign(all_projections.begin(), all_projections.end());
      break;
    }
    const auto projection = projection_named(name);
    check<UsageError>(projection.has_value(), "--target-modules",
                      "\"{}\" is no projection; give auto, all-linear, some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, "
                      "down_proj, or a regular expression for whole names.", name);
    if (!lora.targets(*projection)) lora.target_modules.push_back(*projection);
  }
}

}  // namespace nibble::cli
