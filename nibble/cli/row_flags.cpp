#include "nibble/cli/row_flags.h"

namespace nibble::cli {

void add_think_option(CLI::App& verb, data::Think& think) {
  verb.add_option_function<std::string>(
          "--think", [&think](const std::string& name) { think = data::think_of(name); },
          "Thoughts of assistant turns: stock (as the template prints them), keep (in every turn, as the rows have them),\n"
          "strip (none, no block), empty (an empty block in each: the model is asked not to think)")
      ->check(CLI::IsMember({"keep", "strip", "empty", "stock"}))
      ->default_str(std::string(data::name_of(think)));
}

}  // namespace nibble::cli
