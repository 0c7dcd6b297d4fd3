#include "nibble/base/error.h"
#include "nibble/cli/bench.h"
#include "nibble/cli/terminal.h"
#include "nibble/report/progress.h"
#include "nibble/train/step_bench.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/load_check.h"
#include "nibble/weights/made_up_checkpoint.h"

#include <fmt/format.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <system_error>
#include <thread>

namespace nibble::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct LoadFlags {
  BenchFlags bench;
  ShapeFlags shape;
  std::uint32_t repeats = 3, batch = 1, length = 512, lora_rank = 16;
  std::string folder;
};

// A new folder, removed with all that was put there, also where the program is killed: a process of its own does it as soon as
// the other end of a pipe is gone. To be made before there are threads.
class ScratchFolder {
 public:
  explicit ScratchFolder(const fs::path& parent) {
    std::string pattern = (parent / "nibble-bench-XXXXXX").string();
    if (!::mkdtemp(pattern.data())) fail_with_errno(parent, "make a folder here");
    path_ = pattern;
    int ends[2] = {-1, -1};
    if (::pipe(ends) == 0) remover_ = ::fork();
    if (remover_ == 0) remove_at_the_end_of(ends);
    alive_ = FileDescriptor(ends[1]);
    if (ends[0] >= 0) ::close(ends[0]);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() {
    alive_.close();
    if (remover_ > 0) ::waitpid(remover_, nullptr, 0);
    std::error_code ignored;
    fs::remove_all(path_, ignored);  // where there was no process for it
  }
  const fs::path& path() const { return path_; }

 private:
  [[noreturn]] void remove_at_the_end_of(const int (&ends)[2]) const {
    ::setsid();  // keys that interrupt the program are not for this one
    ::close(ends[1]);
    char nothing = 0;
    while (::read(ends[0], &nothing, 1) < 0 && errno == EINTR) {
    }
    std::error_code ignored;
    fs::remove_all(path_, ignored);
    ::_exit(0);
  }

  fs::path path_;
  pid_t remover_ = -1;
  FileDescriptor alive_;
};

// Drivers keep compiled kernels of their own, which would hide what making them costs; these are told to keep them here.
void move_driver_caches(const fs::path& folder) {
  for (const char* name : {"MESA_SHADER_CACHE_DIR", "__GL_SHADER_DISK_CACHE_PATH"}) {
    fs::create_directories(folder / "driver");
    ::setenv(name, (folder / "driver").c_str(), 1);
  }
}

// Reads all files of a model, so that the system has them in memory.
void read_through(const fs::path& model, const ModelConfig& config, const std::function<void(double)>& progress) {
  const Checkpoint checkpoint = open_checkpoint(model, config);
  std::vector<std::byte> room(std::size_t{4} << 20);
  std::uint64_t done = 0;
  for (const auto& [name, entry] : checkpoint.tensors()) {
    for (std::uint64_t at = 0; at < entry.tensor->bytes; at += room.size()) {
      const auto part = std::span(room).first(std::min<std::uint64_t>(room.size(), entry.tensor->bytes - at));
      entry.file->read(*entry.tensor, at, part);
      done += part.size();
      progress(static_cast<double>(done) / static_cast<double>(checkpoint.total_bytes()));
    }
  }
}

// Ends this process where its parent is killed, so that nothing works on in the folder.
void end_with([[maybe_unused]] pid_t parent) {
#ifdef __linux__
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || ::getppid() != parent) ::_exit(1);
#endif
}

// What `work` returns, from a process of its own: drivers also keep kernels in memory. No device is open yet.
Json in_a_process(const std::function<Json()>& work) {
  int ends[2];
  check<DeviceError>(::pipe(ends) == 0, "bench load", "The system gives no pipe.");
  std::fflush(nullptr);
  const pid_t parent = ::getpid(), child = ::fork();
  check<DeviceError>(child >= 0, "bench load", "The system gives no process.");
  if (child == 0) {
    end_with(parent);
    Json result;
    try {
      result = work();
    } catch (const UsageError& error) {
      result = {{"failure", error.what()}, {"code", exit_usage}};
    } catch (const DeviceError& error) {
      result = {{"failure", error.what()}, {"code", exit_device}};
    } catch (const std::exception& error) {
      result = {{"failure", error.what()}, {"code", exit_data}};
    }
    const std::string text = write_json(result);
    const bool written = ::write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
    ::_exit(written ? 0 : 1);
  }
  ::close(ends[1]);
  std::string text;
  char part[4096];
  for (ssize_t got; (got = ::read(ends[0], part, sizeof part)) > 0;) text.append(part, static_cast<std::size_t>(got));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  check<DeviceError>(WIFEXITED(status) && WEXITSTATUS(status) == 0, "bench load", "The process that started a model ended early.");
  Json result = parse_json(text, "bench load");
  if (!result.contains("failure")) return result;
  const std::string failure = result["failure"];
  if (result["code"] == exit_usage) throw UsageError(failure);
  if (result["code"] == exit_device) throw DeviceError(failure);
  throw DataError(failure);
}

// From nothing to the first step, with what is kept in `cache`.
Json start(const LoadFlags& flags, const fs::path& model, const fs::path& cache) {
  Progress progress(stderr, is_terminal(stderr));
  const auto begin = Clock::now();
  gpu::Device device({.adapter = flags.bench.device.gpu, .cache_dir = cache, .toggles = flags.bench.device.toggles});
  const double opened = seconds_since(begin);
  const ProductPath path = flags.bench.device.path(device.info());
  ModelState state = ModelState::load(
      device, model, {.path = path, .lora = LoraConfig{.rank = flags.lora_rank, .lora_alpha = 2.0 * flags.lora_rank},
                      .progress = [&](double done) { progress.part("Loading", done); }});
  const double loaded = seconds_since(begin) - opened;
  progress.say("Making the kernels of a training step");
  const FirstSteps steps = first_steps(state, {.config = state.config(), .path = path, .batch = flags.batch,
                                               .length = flags.length, .lora_rank = flags.lora_rank});
  return {{"open_seconds", opened},
          {"load_seconds", loaded},
          {"first_step_seconds", steps.first_seconds},
          {"next_step_seconds", steps.next_seconds},
          {"pipeline_seconds", std::max(0.0, steps.first_seconds - steps.next_seconds)},
          {"to_first_step_seconds", opened + loaded + steps.first_seconds},
          {"pipelines", steps.pipelines},
          {"loss", steps.loss}};
}

class LoadBench {
 public:
  LoadBench(const LoadFlags& flags, const fs::path& model)
      : flags_(flags), model_(model), config_(read_model_config(model)),
        report_("load", flags.bench, {{"model", flags.shape.label()}, {"made_up", flags.shape.model.empty()},
                                      {"lora_rank", flags.lora_rank}, {"shape", fmt::format("{}x{}", flags.batch, flags.length)}}) {}

  int run(const fs::path& scratch, Progress& progress) {
    progress.say("Reading all files once, so that they are in memory");
    read_through(model_, config_, [&](double done) { progress.part("Reading", done); });
    for (const char* key : {"cold", "cached"}) {
      progress.say(fmt::format("From nothing to the first step, {}", key == std::string_view("cold") ? "no kernel compiled" : "kernels from disk"));
      row_[key] = in_a_process([&] { return start(flags_, model_, scratch / "pipelines"); });
    }
    const bool passed = load(progress);
    print_start("cold", "kernels compiled");
    print_start("cached", "kernels from disk");
    report_.add(std::move(row_));
    report_.finish();
    return passed ? exit_done : exit_device;
  }

 private:
  std::FILE* out() const { return report_.table(); }

  // Checked once, then timed, each time on a new device: what a device gives back it may keep until it has other work.
  bool load(Progress& progress) {
    const Checkpoint checkpoint = open_checkpoint(model_, config_);
    LoadCheck check;
    LoadTimes times;
    std::vector<double> seconds;
    for (std::uint32_t i = 0; i <= flags_.repeats; ++i) {
      progress.say(i > 0 ? fmt::format("Loading alone, {} of {}", i, flags_.repeats) : "Loading alone, to compare what is loaded");
      gpu::Device device = flags_.bench.device.open();
      const ProductPath path = flags_.bench.device.path(device.info());
      report_.begin(device, path);
      LoadTimes* const timed = i > 0 ? &times : nullptr;
      const auto begin = Clock::now();
      const DeviceWeights weights =
          load_weights(device, checkpoint, config_, {.dense_dtype = operand_dtype(path), .times = timed});
      device.wait("load");
      if (timed) {
        seconds.push_back(seconds_since(begin));
      } else {
        check = check_loaded(device, checkpoint, weights);
      }
    }
    put_load(spread_of(std::move(seconds)), static_cast<double>(checkpoint.total_bytes()), times);
    put_check(check);
    print_load(check);
    return check.passed();
  }

  void put_load(const Spread& seconds, double bytes, const LoadTimes& times) {
    put_rates(row_, seconds, 0, bytes, {});
    row_.erase("tflops");
    row_.erase("share_of_peak");
    const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    double quantized = 0;
    for (const Projection p : all_projections) {
      const auto [rows, columns] = projection_dims(config_, p);
      quantized += 2.0 * rows * columns * config_.num_layers;
    }
    const double each = 1.0 / flags_.repeats;
    row_.update({{"shape", flags_.shape.label()},
                 {"bytes", bytes},
                 {"cores", cores},
                 {"gbs_a_core", bytes / seconds.median * 1e-9 / cores},
                 {"thread_seconds", {{"read", times.read * each}, {"quantize", times.quantize * each},
                                     {"dense", times.dense * each}, {"upload", times.upload * each}}},
                 {"quantize_gbs_a_core", times.quantize > 0 ? Json(quantized / (times.quantize * each) * 1e-9) : Json()}});
  }

  void put_check(const LoadCheck& check) {
    row_["correct"] = check.passed();
    row_["checked"] = {{"nf4_blocks", check.blocks}, {"wrong_nf4_blocks", check.wrong_blocks}, {"values", check.values},
                       {"wrong_values", check.wrong_values}};
  }

  void print_load(const LoadCheck& check) const {
    const auto number = [&](const char* key) { return row_[key].get<double>(); };
    const auto thread = [&](const char* key) { return row_["thread_seconds"][key].get<double>(); };
    fmt::print(out(), "{}, {} in bf16, {} cores\n", flags_.shape.label(), human_bytes(static_cast<std::uint64_t>(number("bytes"))),
               row_["cores"].get<unsigned>());
    fmt::print(out(), "{:>8} {:>17} {:>8} {:>12} {:>8} {:>9} {:>8} {:>8} {:>14} {:>6}\n", "load s", "from - to", "GB/s",
               "GB/s a core", "read s", "quantise", "dense", "upload", "quantise GB/s", "");
    const Json& seconds = row_["seconds"];
    fmt::print(out(), "{:>8.3f} {:>17} {:>8.2f} {:>12.2f} {:>8.3f} {:>9.3f} {:>8.3f} {:>8.3f} {:>14} {:>6}\n",
               seconds["median"].get<double>(),
               fmt::format("{:.3f} - {:.3f}", seconds["min"].get<double>(), seconds["max"].get<double>()), number("gbs"),
               number("gbs_a_core"), thread("read"), thread("quantize"), thread("dense"), thread("upload"),
               row_["quantize_gbs_a_core"].is_null() ? "?" : fmt::format("{:.2f}", number("quantize_gbs_a_core")),
               check.passed() ? "ok" : "WRONG");
    fmt::print(out(), "{:>18} {:>8} {:>8} {:>12} {:>9} {:>11} {:>12} {:>10}\n", "", "open s", "load s", "first step s", "next s",
               "pipelines s", "to first s", "pipelines");
  }

  void print_start(const char* key, const char* label) const {
    const Json& of = row_[key];
    const auto seconds = [&](const char* what) { return of[what].get<double>(); };
    fmt::print(out(), "{:>18} {:>8.3f} {:>8.3f} {:>12.3f} {:>9.3f} {:>11.3f} {:>12.3f} {:>10}\n", label, seconds("open_seconds"),
               seconds("load_seconds"), seconds("first_step_seconds"), seconds("next_step_seconds"), seconds("pipeline_seconds"),
               seconds("to_first_step_seconds"), of["pipelines"].get<std::uint64_t>());
  }

  const LoadFlags& flags_;
  fs::path model_;
  ModelConfig config_;
  BenchReport report_;
  Json row_ = Json::object();
};

int run(const LoadFlags& flags) {
  // Fails where the adapter is not there, before anything is written.
  in_a_process([&] {
    flags.bench.device.open();
    return Json::object();
  });
  const ScratchFolder scratch(flags.folder.empty() ? fs::temp_directory_path() : fs::path(flags.folder));
  move_driver_caches(scratch.path());
  Progress progress(stderr, is_terminal(stderr));
  fs::path model = flags.shape.model;
  if (model.empty()) {
    model = scratch.path() / "model";
    fs::create_directory(model);
    progress.say(fmt::format("Writing random weights into {}", model.string()));
    write_made_up_checkpoint(model, flags.shape.config(), made_up_shard_bytes, [&](double done) { progress.part("Writing", done); });
  }
  return LoadBench(flags, model).run(scratch.path(), progress);
}

}  // namespace

void add_bench_load(CLI::App& bench, Action& action) {
  auto flags = std::make_shared<LoadFlags>();
  CLI::App* load = bench.add_subcommand(
      "load", "Times loading: reading, quantising and uploading a model, then making the kernels of a training step.\n"
              "With --shape a random model is written into a temporary folder first and removed at the end; with --model a\n"
              "folder's own weights are read. Parts of every matrix are compared with the scalar quantiser, bit for bit; exit\n"
              "code 3 where they are WRONG. The files are in memory when loading is timed.");
  flags->shape.add_to(*load);
  load->add_option("--folder", flags->folder, "Where the temporary folder is made; by default the system's place for them");
  load->add_option("--batch", flags->batch, "Segments of the step")->capture_default_str()->check(CLI::Range(1, 1 << 16));
  load->add_option("--length", flags->length, "Tokens of a segment")->capture_default_str()->check(CLI::Range(2, 1 << 20));
  load->add_option("--lora-rank", flags->lora_rank, "Rank of the adapters")->capture_default_str()->check(CLI::Range(1, 256));
  load->add_option("--repeats", flags->repeats, "Timed loads; the median is shown")->capture_default_str()->check(CLI::Range(1, 1000));
  flags->bench.add_to(*load);
  load->remove_option(load->get_option("--profile"));  // hardly a kernel runs while weights are loaded
  load->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
