#include "nibble/report/metrics_log.h"

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/io/json.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

namespace nibble {
namespace {

// Lines of steps beyond `keep_steps` go, and so does a last line that a killed process left half written.
std::string lines_to_keep(const std::filesystem::path& path, std::uint64_t keep_steps) {
  std::string kept;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const Json record = Json::parse(line, nullptr, false);
    if (!record.is_object() || !record.contains("step") || !record["step"].is_number_unsigned()) continue;
    if (record["step"].get<std::uint64_t>() <= keep_steps) kept += line + "\n";
  }
  return kept;
}

void add(Json& line, const PreferenceRecord& record, const std::string& prefix) {
  line[prefix + "rewards/chosen"] = record.rewards_chosen;
  line[prefix + "rewards/rejected"] = record.rewards_rejected;
  line[prefix + "rewards/accuracies"] = record.rewards_accuracies;
  line[prefix + "rewards/margins"] = record.rewards_margins;
  line[prefix + "logps/chosen"] = record.logps_chosen;
  line[prefix + "logps/rejected"] = record.logps_rejected;
  line[prefix + "nll_loss"] = record.nll_loss;
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& path, std::uint64_t keep_steps) : path_(path) {
  write_file_atomically(path, keep_steps == 0 ? "" : lines_to_keep(path, keep_steps));
  file_.reset(std::fopen(path.c_str(), "a"));
  check<DataError>(file_ != nullptr, path.string(), "The file cannot be written: {}.", std::strerror(errno));
}

void MetricsLog::write_line(const std::string& line) {
  const bool written = std::fputs((line + "\n").c_str(), file_.get()) >= 0 && std::fflush(file_.get()) == 0;
  check<DataError>(written, path_.string(), "The file cannot be written: {}.", std::strerror(errno));
}

void MetricsLog::write(const StepRecord& record) {
  Json line = {{"step", record.step},
               {"epoch", record.epoch},
               {"loss", record.loss},
               {"grad_norm", record.grad_norm},
               {"learning_rate", record.learning_rate},
               {"tokens", record.tokens},
               {"tokens_per_second", record.tokens_per_second},
               {"memory_bytes", record.memory_bytes}};
  if (record.preference) add(line, *record.preference, "");
  write_line(write_json_line(line));
}

void MetricsLog::write(const EvalRecord& record) {
  Json line = {{"step", record.step}, {"eval_loss", record.eval_loss}, {"eval_tokens", record.tokens}};
  if (record.preference) {
    add(line, *record.preference, "eval_");
  } else {
    line["eval_accuracy"] = record.accuracy;
  }
  write_line(write_json_line(line));
}

}  // namespace nibble
