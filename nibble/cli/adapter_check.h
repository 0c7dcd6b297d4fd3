#pragma once

#include "nibble/weights/peft.h"

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::cli {

// The options of `nibble train` that say what a new adapter is, without the dashes.
std::vector<std::string> new_adapter_options();

// Where training goes on from `adapter`, of a model with so many layers: UsageError names an option that was given (`given` hears
// its name) and asks, as `asked` has it, for other modules, ranks, scales or another kind than the adapter has. Another way to say
// the same passes.
void check_same_adapter(const LoraConfig& asked, const LoraConfig& adapter, std::uint32_t num_layers,
                        const std::function<bool(const std::string&)>& given);

}  // namespace nibble::cli
