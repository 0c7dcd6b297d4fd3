#include "nibble/cli/sampling_flags.h"

namespace nibble::cli {

void SamplingFlags::add_to(CLI::App& verb, const std::string& defaults) {
  verb.add_option("--temperature", temperature,
                  "0 takes the most likely token every time; above, tokens are drawn, the more freely the higher it is.\n" + defaults);
  verb.add_option("--top-k", top_k, "Draw from so many of the most likely tokens; 0 for all");
  verb.add_option("--top-p", top_p, "Draw from the most likely tokens that have this probability together");
  verb.add_option("--min-p", min_p, "Draw from tokens with at least this share of the most likely one's probability");
  verb.add_option("--repetition-penalty", repetition_penalty, "Above 1: tokens of the text so far become less likely");
  verb.add_option("--seed", seed, "Of the draws")->capture_default_str();
}

SamplingOptions SamplingFlags::options(const GenerationDefaults& made) const {
  const bool drawn = made.do_sample || top_k || top_p || min_p;
  SamplingOptions options{.temperature = temperature.value_or(drawn ? made.temperature.value_or(1.0f) : 0.0f),
                          .top_k = top_k.value_or(made.top_k.value_or(0)),
                          .top_p = top_p.value_or(made.top_p.value_or(1.0f)),
                          .min_p = min_p.value_or(made.min_p.value_or(0.0f)),
                          .repetition_penalty = repetition_penalty.value_or(made.repetition_penalty.value_or(1.0f)),
                          .seed = seed};
  check_sampling(options);
  return options;
}

}  // namespace nibble::cli
