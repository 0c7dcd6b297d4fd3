#pragma once

#include <functional>
#include <string_view>

namespace nibble {

enum class LogLevel { info, warning };

// Where the library's remarks go; silent until a program sets it. Set it before other threads start.
using LogHook = std::function<void(LogLevel, std::string_view message)>;

void set_log_hook(LogHook hook);
void log_info(std::string_view message);
// A warning says what to do about it.
void log_warning(std::string_view message);

}  // namespace nibble
