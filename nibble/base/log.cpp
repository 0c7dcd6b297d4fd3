#include "nibble/base/log.h"

#include <utility>

namespace nibble {
namespace {

LogHook& hook() {
  static LogHook instance;
  return instance;
}

void log(LogLevel level, std::string_view message) {
  if (hook()) hook()(level, message);
}

}  // namespace

void set_log_hook(LogHook new_hook) { hook() = std::move(new_hook); }
void log_info(std::string_view message) { log(LogLevel::info, message); }
void log_warning(std::string_view message) { log(LogLevel::warning, message); }

}  // namespace nibble
