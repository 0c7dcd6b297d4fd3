#pragma once

#include "nibble/report/records.h"

#include <chrono>
#include <cstdio>
#include <string>

namespace nibble {

// "1.9 GiB", "412 MiB", "9 KiB", "10 bytes"
std::string human_bytes(std::uint64_t bytes);
// "2 h 03 min", "4 min 10 s", "12 s"
std::string human_seconds(double seconds);
// "12,345,678"
std::string grouped(std::uint64_t value);

// One line that is written over in a terminal; elsewhere a line each, less often as the run goes on.
class Progress {
 public:
  Progress(std::FILE* out, bool terminal) : out_(out), terminal_(terminal) {}
  ~Progress() { finish_line(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step(const StepRecord& record);
  void evaluation(const EvalRecord& record);
  // A remark on a line of its own.
  void say(const std::string& text);
  // Part of a longer piece of work that is done, from 0 to 1: "Loading: 43%". Elsewhere than in a terminal a line every ten
  // seconds.
  void part(const std::string& what, double done);
  void finish_line();

 private:
  std::FILE* out_;
  bool terminal_;
  bool open_ = false;  // the cursor stands at the end of a line to be written over
  std::string part_;  // of which last_percent_ was shown
  int last_percent_ = -1;
  std::chrono::steady_clock::time_point part_shown_{};
};

}  // namespace nibble
