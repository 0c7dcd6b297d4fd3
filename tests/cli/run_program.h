#pragma once

#include "tests/support/files.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <vector>

namespace nibble::test {

struct ProgramResult {
  int code = -1;  // -1 where it did not end by itself
  std::string out, err;
};

// Runs the nibble that was built with these arguments and this standard input.
inline ProgramResult run_nibble(std::vector<std::string> arguments, const std::string& input = {}) {
  const TemporaryFolder folder;
  const std::string in = folder.write("in", input), out = folder / "out", err = folder / "err";
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawn_file_actions_addopen(&files, 0, in.c_str(), O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(&files, 1, out.c_str(), O_WRONLY | O_CREAT, 0600);
  ::posix_spawn_file_actions_addopen(&files, 2, err.c_str(), O_WRONLY | O_CREAT, 0600);
  arguments.insert(arguments.begin(), NIBBLE_PROGRAM);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t child = 0;
  int status = -1;
  const int failed = ::posix_spawn(&child, NIBBLE_PROGRAM, &files, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&files);
  EXPECT_EQ(failed, 0);
  if (failed != 0 || ::waitpid(child, &status, 0) != child) return {};
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, slurp(out), slurp(err)};
}

}  // namespace nibble::test
