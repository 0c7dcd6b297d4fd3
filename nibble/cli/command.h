#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "nibble/base/dtype.h"

namespace nibble::cli {

// What the chosen verb does, set while the command line is parsed; returns the exit code.
using Action = std::function<int()>;

// Each declares its verb with its options; the options' struct lives in the closure that runs it.
void add_train(CLI::App& app, Action& action);
void add_eval(CLI::App& app, Action& action);
void add_generate(CLI::App& app, Action& action);
void add_chat(CLI::App& app, Action& action);
void add_export(CLI::App& app, Action& action);
void add_merge(CLI::App& app, Action& action);
void add_quantize(CLI::App& app, Action& action);
void add_info(CLI::App& app, Action& action);
void add_tokenize(CLI::App& app, Action& action);
void add_verify(CLI::App& app, Action& action);
void add_bench(CLI::App& app, Action& action);
void add_doctor(CLI::App& app, Action& action);

// The process's exit codes.
constexpr int exit_done = 0, exit_data = 1, exit_usage = 2, exit_device = 3, exit_diverged = 4, exit_interrupted = 130;

// Types that weights are written in, by their names on the command line.
inline const std::map<std::string, DType> float_dtypes{{"bf16", DType::bf16}, {"f16", DType::f16}, {"f32", DType::f32}};

}  // namespace nibble::cli
