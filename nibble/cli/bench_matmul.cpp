#include "nibble/base/error.h"
#include "nibble/cli/bench.h"
#include "nibble/gpu/disk_cache.h"
#include "nibble/model/matmul_bench.h"
#include "nibble/model/tuning_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <set>

namespace nibble::cli {
namespace {

struct MatmulFlags {
  BenchFlags bench;
  ShapeFlags shape;
  std::vector<std::uint32_t> rows = {512, 2048, 8192};
  std::vector<std::string> products = {"qkv", "o", "gate_up", "down", "head"}, layouts = {"nt", "nn"};
  std::uint32_t lora_rank = 16, repeats = 3;
  bool sweep = false, save = false;
};

// How one product went by one plan; none on the paths that have none.
struct Candidate {
  std::optional<MatrixPlan> plan;
  double error = 0;
  bool correct = false;
  Spread seconds;
  double decoding = 0;  // seconds of its weight's

  const MatrixPlan* plan_or_null() const { return plan ? &*plan : nullptr; }
  bool in_tiles() const { return plan && plan->tile.direct; }
};

// Of a problem, the device's own plan first.
struct Measured {
  MatmulProblem problem;
  MatrixShape shape;
  double flops = 0, bytes = 0;
  std::vector<Candidate> candidates;

  // The fastest of those that are right; direct or staged ones alone where asked.
  const Candidate* best(std::optional<bool> direct = {}) const {
    const Candidate* best = nullptr;
    for (const Candidate& c : candidates) {
      if (!c.correct || (direct && (!c.plan || c.in_tiles() != *direct))) continue;
      if (!best || c.seconds.median < best->seconds.median) best = &c;
    }
    return best;
  }
};

double batch(gpu::Device& device, int count, const std::function<void(gpu::Recorder&)>& record) {
  const auto begin = std::chrono::steady_clock::now();
  gpu::Recorder recorder(device);
  for (int i = 0; i < count; ++i) record(recorder);
  recorder.submit();
  device.wait("bench matmul");
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Times a problem's plans as a step has them: right after the weight has been decoded, which leaves the cache in another state than the
// product itself. What decoding takes by itself is taken off.
class Timer {
 public:
  Timer(gpu::Device& device, MatmulBench& bench) : device_(device), bench_(bench) {}

  double decoding(bool tiled, int count, std::uint32_t repeats) {
    if (!bench_.decodes()) return 0;
    std::vector<double> times;
    for (std::uint32_t i = 0; i < repeats; ++i) times.push_back(batch(device_, count, [&](gpu::Recorder& r) { bench_.record_decoding(r, tiled); }) / count);
    return spread_of(times).median;
  }
  double both(const Candidate& c, int count) {
    return batch(device_, count, [&](gpu::Recorder& r) {
      bench_.record_decoding(r, c.in_tiles());
      bench_.record(r, c.plan_or_null());
    }) / count;
  }
  // How often a plan goes into a batch of 30 ms, of a card that is warm.
  int warm_up(const Candidate& c) {
    int count = 1;
    for (double warm = 0; warm < 0.4;) {
      const double once = both(c, count);
      warm += once * count;
      count = std::clamp(static_cast<int>(0.03 / once), 1, 1000);
    }
    return count;
  }

 private:
  gpu::Device& device_;
  MatmulBench& bench_;
};

// Each plan in turn, so that a card which grows warm favours none. What the first round leaves far behind is not timed again.
void time_all(gpu::Device& device, MatmulBench& bench, std::vector<Candidate>& candidates, std::uint32_t repeats) {
  constexpr double far_behind = 1.15;
  Timer timer(device, bench);
  const int count = timer.warm_up(candidates.front());
  std::vector<std::vector<double>> times(candidates.size());
  for (const bool tiled : {false, true}) {
    std::optional<double> decoding;  // the same for all of a kind, so that it favours none of them
    for (Candidate& c : candidates) {
      if (c.in_tiles() == tiled) c.decoding = decoding ? *decoding : decoding.emplace(timer.decoding(tiled, count, repeats));
    }
  }
  double best = 0;
  for (std::uint32_t i = 0; i < repeats; ++i) {
    for (std::size_t c = 0; c < candidates.size(); ++c) {
      if (!candidates[c].correct || (i > 0 && c > 0 && times[c].front() > far_behind * best)) continue;
      times[c].push_back(std::max(1e-9, timer.both(candidates[c], count) - candidates[c].decoding));
      if (best == 0 || times[c].back() < best) best = times[c].back();
    }
  }
  for (std::size_t c = 0; c < candidates.size(); ++c) {
    if (candidates[c].correct) candidates[c].seconds = spread_of(times[c]);
  }
}

// The adapter's own plans, with weights in rows and in tiles, and, for a sweep, other tiles.
std::vector<Candidate> first_candidates(gpu::Device& device, const MatmulFlags& flags, const MatmulProblem& problem,
                                        const MatmulBench& bench, ProductPath path) {
  if (path != ProductPath::matrix) return {Candidate{}};
  const bool direct = direct_matrix_tile(device.info()) && bench.has_tiles();
  const bool tiled = direct && prefers_tiles(device, problem.rows);
  std::vector<Candidate> candidates{{.plan = bench.own_plan(tiled)}};
  if (!flags.sweep) return candidates;
  for (const bool in_tiles : {false, true}) {
    if (in_tiles && !direct) continue;
    for (const MatrixTile& tile : candidate_tiles(device.info(), in_tiles)) {
      if (!bench.allows(tile)) continue;
      candidates.push_back({.plan = MatrixPlan{tile, 1}});
      const MatrixPlan split = split_plan(device.info(), bench.shape(), tile);
      if (split.splits > 1) candidates.push_back({.plan = split});
    }
  }
  return candidates;
}

// The best tiles of each kind with other bands and splits.
std::vector<Candidate> further_candidates(const gpu::AdapterInfo& info, const Measured& measured) {
  std::vector<Candidate> result;
  std::set<std::string> known;
  for (const Candidate& c : measured.candidates) known.insert(describe(*c.plan));
  for (const bool direct : {false, true}) {
    std::vector<const Candidate*> order;
    for (const Candidate& c : measured.candidates) {
      if (c.correct && c.plan->tile.direct == direct) order.push_back(&c);
    }
    std::sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->seconds.median < b->seconds.median; });
    for (std::size_t i = 0; i < std::min<std::size_t>(3, order.size()); ++i) {
      const auto add = [&](std::uint32_t band, std::uint32_t splits, std::uint32_t wave) {
        MatrixPlan plan = *order[i]->plan;
        plan.tile.band = band;
        plan.splits = splits;
        plan.wave = wave;
        if (known.insert(describe(plan)).second) result.push_back({.plan = plan});
      };
      const std::uint32_t block_rows = (measured.shape.rows - 1) / order[i]->plan->tile.block_m + 1;
      for (const std::uint32_t band : {1u, 2u, 4u, 8u, 16u, 32u, 64u}) {
        if (band < 2 * block_rows) add(band, 1, 0);
      }
      const MatrixTile& tile = order[i]->plan->tile;
      const std::uint32_t wave = blocks_at_once(info, tile);
      const std::uint32_t blocks = block_rows * ((measured.shape.columns - 1) / tile.block_n + 1);
      for (const std::uint32_t splits : {2u, 3u, 4u, 6u, 8u}) {
        add(tile.band, splits, 0);
        if (wave > 0 && blocks > wave) add(tile.band, splits, wave);
      }
    }
  }
  return result;
}

// The first against sums in double and the others against the first.
void verify(gpu::Device& device, MatmulBench& bench, std::vector<Candidate>& candidates) {
  {
    // All in one go, so that their kernels are compiled side by side.
    gpu::Recorder recorder(device);
    for (const Candidate& c : candidates) bench.record(recorder, c.plan_or_null());
    recorder.submit();
  }
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    Candidate& c = candidates[i];
    c.error = i == 0 ? bench.error(c.plan_or_null()) : bench.difference(*c.plan);
    c.correct = c.error <= bench.allowed_error();
  }
}

Measured measure_problem(gpu::Device& device, const MatmulFlags& flags, const MatmulProblem& problem, ProductPath path) {
  const ModelConfig config = flags.shape.config();
  MatmulBench bench(device, config, path, problem);
  Measured measured{.problem = problem, .shape = bench.shape(), .flops = bench.flops(), .bytes = bench.bytes()};
  measured.candidates = first_candidates(device, flags, problem, bench, path);
  verify(device, bench, measured.candidates);
  if (!measured.candidates.front().correct) return measured;
  time_all(device, bench, measured.candidates, flags.repeats);
  if (!flags.sweep || path != ProductPath::matrix) return measured;
  std::vector<Candidate> further = further_candidates(device.info(), measured);
  further.insert(further.begin(), measured.candidates.front());
  verify(device, bench, further);
  time_all(device, bench, further, flags.repeats);
  measured.candidates.insert(measured.candidates.end(), further.begin() + 1, further.end());
  return measured;
}

Json row_of(const Measured& m, const Candidate& c, const Peaks& peaks) {
  Json row = {{"product", name_of(m.problem)},
              {"layout", m.shape.layout == MatrixLayout::nt ? "nt" : "nn"},
              {"rows", m.shape.rows},
              {"columns", m.shape.columns},
              {"inner", m.shape.inner},
              {"plan", c.plan ? Json(describe(*c.plan)) : Json()},
              {"direct", c.in_tiles()},
              {"decode_seconds", c.decoding},
              {"splits", c.plan ? c.plan->splits : 1},
              {"wave", c.plan ? c.plan->wave : 0},
              {"error", std::isnan(c.error) ? Json() : Json(c.error)},
              {"correct", c.correct}};
  if (c.correct) put_rates(row, c.seconds, m.flops, m.bytes, peaks);
  return row;
}

void print_row(std::FILE* out, const Measured& m, const Candidate& c, const Peaks& peaks, std::string_view note) {
  const double share = c.correct && peaks.flops > 0 ? m.flops / c.seconds.median / peaks.flops : 0;
  fmt::print(out, "{:<8} {:<3} {:>6} {:>7} {:>7}  {:<40} {:>9.3f} {:>8.1f} {:>8} {:>8.1e} {}\n", name_of(m.problem),
             m.shape.layout == MatrixLayout::nt ? "nt" : "nn", m.shape.rows, m.shape.columns, m.shape.inner,
             c.plan ? describe(*c.plan) : "", c.seconds.median * 1e3, c.correct ? m.flops / c.seconds.median * 1e-12 : 0,
             share > 0 ? fmt::format("{:.1f}%", 100 * share) : "?", c.error, c.correct ? note : "WRONG");
  std::fflush(out);
}

void print_problem(std::FILE* out, const Measured& m, const Peaks& peaks, bool sweep) {
  print_row(out, m, m.candidates.front(), peaks, "ok");
  for (const Candidate& c : m.candidates) {
    if (!c.correct && &c != &m.candidates.front()) print_row(out, m, c, peaks, "");
  }
  if (!sweep) return;
  for (const bool direct : {false, true}) {
    if (const Candidate* best = m.best(direct)) print_row(out, m, *best, peaks, direct ? "best in tiles" : "best in rows");
  }
}

// Winners of both kinds. Which kind serves batches of so many rows is decided by the sum over all products that can have
// either, and their decoding: tiles from the rows on from which they always win.
MatrixTuning tuning_of(const std::vector<Measured>& all, std::FILE* out) {
  MatrixTuning tuning{.products = {}, .tiled_rows = UINT32_MAX};
  struct Sums {
    double rows = 0, tiles = 0;
  };
  std::map<std::uint32_t, Sums> by_rows;
  for (const Measured& m : all) {
    const Candidate *staged = m.best(false), *direct = m.best(true);
    for (const Candidate* winner : {staged, direct}) {
      if (winner) tuning.products.push_back({m.shape, *winner->plan});
    }
    if (!staged || !direct) continue;
    Sums& sums = by_rows[m.shape.rows];
    sums.rows += staged->seconds.median + staged->decoding, sums.tiles += direct->seconds.median + direct->decoding;
  }
  for (auto it = by_rows.rbegin(); it != by_rows.rend() && it->second.tiles < it->second.rows; ++it) tuning.tiled_rows = it->first;
  for (const auto& [rows, sums] : by_rows) {
    fmt::print(out, "{:>6} rows: with weights in rows {:.3f} ms over all products that can have either and decoding, in tiles {:.3f} ms.\n", rows,
               sums.rows * 1e3, sums.tiles * 1e3);
  }
  return tuning;
}

std::vector<MatmulProblem> problems_of(const MatmulFlags& flags) {
  std::vector<MatmulProblem> problems;
  const std::map<std::string, std::optional<Joint>> joints{
      {"qkv", Joint::qkv}, {"o", Joint::o}, {"gate_up", Joint::gate_up}, {"down", Joint::down}, {"head", std::nullopt}};
  for (const std::uint32_t rows : flags.rows) {
    for (const std::string& product : flags.products) {
      for (const std::string& layout : flags.layouts) {
        // The head's rows come in chunks.
        const std::uint32_t few = product == "head" ? std::min(rows, 512u) : rows;
        const MatmulProblem problem{.joint = joints.at(product), .layout = layout == "nt" ? MatrixLayout::nt : MatrixLayout::nn,
                                    .rows = few, .lora_rank = flags.lora_rank};
        if (product == "head" && few != rows && rows != flags.rows.front()) continue;
        problems.push_back(problem);
      }
    }
  }
  return problems;
}

int run(const MatmulFlags& flags) {
  check<UsageError>(!flags.save || flags.sweep, "--save", "It keeps what --sweep finds; give that too.");
  gpu::Device device = flags.bench.device.open();
  const ProductPath path = flags.bench.device.path(device.info());
  check<UsageError>(!flags.sweep || path == ProductPath::matrix, "--sweep", "There are plans for subgroup matrices alone, not for {}.",
                    name_of(path));
  BenchReport report("matmul", flags.bench,
                     {{"model", flags.shape.label()}, {"lora_rank", flags.lora_rank}, {"sweep", flags.sweep}, {"repeats", flags.repeats}});
  report.begin(device, path);
  const Peaks peaks = flags.bench.peaks(device.info());
  fmt::print(report.table(), "{:<8} {:<3} {:>6} {:>7} {:>7}  {:<40} {:>9} {:>8} {:>8} {:>8}\n", "product", "", "rows", "columns",
             "inner", "plan", "ms", "TFLOP/s", "of peak", "error");
  std::vector<Measured> all;
  bool correct = true;
  for (const MatmulProblem& problem : problems_of(flags)) {
    const Measured& m = all.emplace_back(measure_problem(device, flags, problem, path));
    print_problem(report.table(), m, peaks, flags.sweep);
    for (const Candidate& c : m.candidates) {
      correct = correct && c.correct;
      report.add(row_of(m, c, peaks));
    }
  }
  if (flags.sweep) {
    const MatrixTuning tuning = tuning_of(all, report.table());
    if (flags.save) {
      matrix_tuning(device) = tuning;
      save_matrix_tuning(device, gpu::default_cache_dir());
      fmt::print(report.table(), "Kept in {}.\n", (gpu::default_cache_dir() / tuning_file_name).string());
    }
  }
  report.finish();
  print_profile(device);
  return correct ? exit_done : exit_device;
}

}  // namespace

void add_bench_matmul(CLI::App& bench, Action& action) {
  auto flags = std::make_shared<MatmulFlags>();
  CLI::App* matmul = bench.add_subcommand(
      "matmul", "Times the large products of a training step: nt through a weight forward, nn through it backward, with the\n"
                "adapters that go along. Each is verified against sums in double first; exit code 3 where one is WRONG.\n"
                "--sweep tries other tiles, splits of the inner dimension and orders of blocks; --save keeps the winners for this\n"
                "adapter and driver, and every later command uses them.");
  flags->shape.add_to(*matmul);
  matmul->add_option("--rows", flags->rows, "Tokens; several values give several rows")->capture_default_str()->check(CLI::Range(1, 1 << 20));
  matmul->add_option("--products", flags->products, "Which weights")->capture_default_str()
      ->check(CLI::IsMember({"qkv", "o", "gate_up", "down", "head"}));
  matmul->add_option("--layouts", flags->layouts, "Which directions")->capture_default_str()->check(CLI::IsMember({"nt", "nn"}));
  matmul->add_option("--lora-rank", flags->lora_rank, "Rank of the adapters that products take along; 0: none")
      ->capture_default_str()->check(CLI::Range(0, 256));
  matmul->add_option("--repeats", flags->repeats, "Timed batches of about 30 ms; the median is shown")
      ->capture_default_str()->check(CLI::Range(1, 1000));
  matmul->add_flag("--sweep", flags->sweep, "Try other ways to do each product");
  matmul->add_flag("--save", flags->save, "Keep the winners of the sweep");
  flags->bench.add_to(*matmul);
  matmul->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
