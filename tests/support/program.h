#pragma once

#include "tests/support/files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

namespace nibble::test {

struct ProgramResult {
  int code = -1;    // exit code; -1 where a signal ended it
  int signal = 0;   // that ended it
  std::string out, err;
};

struct ProgramOptions {
  std::string input;               // standard input
  rlim_t largest_file = RLIM_INFINITY;  // writing beyond fails, as on a full disk
};

// A program under test while it runs; killed at the end where it still does.
class RunningProgram {
 public:
  RunningProgram(const std::filesystem::path& program, std::vector<std::string> arguments, const ProgramOptions& options = {}) {
    const std::string in = folder_.write("in", options.input), out = folder_ / "out", err = folder_ / "err";
    arguments.insert(arguments.begin(), program.string());
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    child_ = ::fork();
    if (child_ != 0) return;
    const rlimit limit{options.largest_file, options.largest_file};
    if (options.largest_file != RLIM_INFINITY) {
      ::signal(SIGXFSZ, SIG_IGN);
      ::setrlimit(RLIMIT_FSIZE, &limit);
    }
    ::dup2(::open(in.c_str(), O_RDONLY), 0);
    ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT, 0600), 1);
    ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT, 0600), 2);
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
  std::string err() const { return std::filesystem::exists(folder_ / "err") ? slurp(folder_ / "err") : std::string(); }

 private:
  TemporaryFolder folder_;
  pid_t child_ = 0;
};

inline ProgramResult run_program(const std::filesystem::path& program, const std::vector<std::string>& arguments,
                                 const ProgramOptions& options = {}) {
  return RunningProgram(program, arguments, options).wait();
}

}  // namespace nibble::test
