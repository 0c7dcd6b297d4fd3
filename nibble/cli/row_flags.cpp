#include "nibble/cli/row_flags.h"

#include "nibble/base/error.h"

namespace nibble::cli {

CLI::Option* RowFlags::add_data(CLI::App& verb, const std::string& rows) {
  return verb.add_option("--data", data, rows);
}

void RowFlags::add_map(CLI::App& verb) {
  verb.add_option("--map", map,
                  "Which columns stand for what, as question=user,answer=assistant; other names: system, prompt, completion, text,\n"
                  "chosen, rejected, label, input, instruction, output, response, messages, conversations, tools")
      ->delimiter(',');
}

data::DataFiles RowFlags::unweighted_files() const {
  data::DataFiles result = files();
  check<UsageError>(!result.weighted(), "--data", "Weights say how training draws, and here every row counts once; leave them out of {}.",
                    result.text());
  return result;
}

void add_think_option(CLI::App& verb, data::Think& think) {
  verb.add_option_function<std::string>(
          "--think", [&think](const std::string& name) { think = data::think_of(name); },
          "Thoughts of assistant turns: stock (as the template prints them), keep (in every turn, as the rows have them),\n"
          "strip (none, no block), empty (an empty block in each: the model is asked not to think)")
      ->check(CLI::IsMember({"keep", "strip", "empty", "stock"}))
      ->default_str(std::string(data::name_of(think)));
}

void add_system_option(CLI::App& verb, std::string& system) {
  verb.add_option("--system", system, "System message of chats that have none of their own; texts stay as they are");
}

}  // namespace nibble::cli
