#pragma once

#include "tests/support/files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

namespace nibble::test {

struct ProgramResult {
  int code = -1;   // exit code; -1 where a signal ended it
  int signal = 0;  // that ended it
  std::string out, err;
};

// A program under test while it runs; killed at the end where it still does.
class RunningProgram {
 public:
  RunningProgram(const std::filesystem::path& program, std::vector<std::string> arguments, const std::string& input = {}) {
    const std::string in = folder_.write("in", input), out = folder_.write("out", ""), err = folder_.write("err", "");
    arguments.insert(arguments.begin(), program.string());
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    child_ = ::fork();
    if (child_ != 0) return;
    ::dup2(::open(in.c_str(), O_RDONLY), 0);
    ::dup2(::open(out.c_str(), O_WRONLY), 1);
    ::dup2(::open(err.c_str(), O_WRONLY), 2);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  RunningProgram(const RunningProgram&) = delete;
  RunningProgram& operator=(const RunningProgram&) = delete;
  ~RunningProgram() {
    if (child_ > 0) wait_after(SIGKILL);
  }

  void send(int signal) { ::kill(child_, signal); }
  ProgramResult wait_after(int signal) {
    send(signal);
    return wait();
  }
  ProgramResult wait() {
    int status = 0;
    EXPECT_EQ(::waitpid(child_, &status, 0), child_);
    child_ = 0;
    ProgramResult result{.out = slurp(folder_ / "out"), .err = slurp(folder_ / "err")};
    if (WIFEXITED(status)) result.code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
    return result;
  }
  bool running() {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(child_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0;
  }
  // What it has said so far.
  std::string err() const { return slurp(folder_ / "err"); }
  pid_t pid() const { return child_; }

 private:
  TemporaryFolder folder_;
  pid_t child_ = 0;
};

inline ProgramResult run_program(const std::filesystem::path& program, const std::vector<std::string>& arguments,
                                 const std::string& input = {}) {
  return RunningProgram(program, arguments, input).wait();
}

}  // namespace nibble::test
