#pragma once

#include "nibble/report/records.h"

#include <cstdio>
#include <filesystem>
#include <memory>

namespace nibble {

// metrics.jsonl: a line a step and a line an evaluation, each written out at once.
class MetricsLog {
 public:
  // Keeps the lines of an existing file up to `keep_steps`, since a resumed run does the later ones again.
  MetricsLog(const std::filesystem::path& path, std::uint64_t keep_steps);

  void write(const StepRecord& record);
  void write(const EvalRecord& record);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  void write_line(const std::string& line);

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace nibble
