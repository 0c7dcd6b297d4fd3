#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/cli/command.h"
#include "nibble/cli/terminal.h"
#include "nibble/cli/usage.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <new>

namespace {

using namespace nibble;
using namespace nibble::cli;

int fail_with(int code, std::string_view message) {
  fmt::print(stderr, "nibble: {}\n", printable(message));
  return code;
}

// What was printed is kept back until there is more, so that only here it is known whether all of it arrived.
int arrived(int code) {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  const char* reason = errno != 0 ? std::strerror(errno) : "an earlier part was not taken, as by a full disk";
  return fail_with(code == exit_done ? exit_data : code, fmt::format("Standard output could not be written: {}.", reason));
}

int run(const Action& action) {
  try {
    return arrived(action());
  } catch (const UsageError& error) {
    return fail_with(exit_usage, error.what());
  } catch (const DeviceError& error) {
    return fail_with(exit_device, error.what());
  } catch (const Diverged& error) {
    return fail_with(exit_diverged, error.what());
  } catch (const std::bad_alloc&) {
    return fail_with(exit_data, "There is not enough memory (RAM).");
  } catch (const std::exception& error) {
    return fail_with(exit_data, error.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  set_log_hook([](LogLevel level, std::string_view message) {
    fmt::print(stderr, "{}{}\n", level == LogLevel::warning ? "warning: " : "", message);
  });
  CLI::App app{
      "nibble fine-tunes language models in 4 bits (QLoRA) on any GPU. Each verb's --help is its manual.\n"
      "Exit codes: 0 done, 1 the data or model is at fault, 2 usage, 3 the device failed, 4 training diverged,\n"
      "130 interrupted after saving."};
  app.name("nibble");
  app.set_version_flag("--version", "nibble " NIBBLE_VERSION);
  app.formatter(help_format());
  app.require_subcommand(1);
  Action action;
  // One line a verb, in the order of --help.
  add_train(app, action);
  add_eval(app, action);
  add_generate(app, action);
  add_chat(app, action);
  add_export(app, action);
  add_merge(app, action);
  add_quantize(app, action);
  add_info(app, action);
  add_tokenize(app, action);
  add_verify(app, action);
  add_bench(app, action);
  add_doctor(app, action);
  check_numbers(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& done) {
    const int code = app.exit(done);
    std::cout.flush();
    return arrived(code);
  } catch (const CLI::ParseError& error) {
    if (argc == 1) {
      fmt::print(stderr, "{}", app.help());
      return exit_usage;
    }
    return fail_with(exit_usage, usage_error(app, error));
  }
  return run(action);
}
