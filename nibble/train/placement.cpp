#include "nibble/train/placement.h"

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/gpu/host_tensor.h"
#include "nibble/io/scratch_file.h"
#include "nibble/report/progress.h"
#include "nibble/train/plan_cost.h"
#include "nibble/weights/nf4_room.h"

#include <algorithm>

namespace nibble {
namespace {

// "41.0 MiB (43004928 bytes)": what is to be given as a limit must not be rounded.
std::string exact_bytes(std::uint64_t bytes) { return bytes < 1024 ? human_bytes(bytes) : fmt::format("{} ({} bytes)", human_bytes(bytes), bytes); }

Activations activations_under(Checkpointing checkpointing) {
  if (checkpointing == Checkpointing::on) return Activations::recompute;
  return checkpointing == Checkpointing::mlp ? Activations::recompute_mlp : Activations::keep;
}

// The last layers compute all but their input again, since of the very last one everything is still there.
ActivationChoices choices_of(std::uint32_t layers, std::uint32_t recompute_mlp, std::uint32_t recompute) {
  if (recompute == layers) return {Activations::recompute};
  if (recompute_mlp == layers) return {Activations::recompute_mlp};
  if (recompute + recompute_mlp == 0) return {Activations::keep};
  ActivationChoices choices(layers, Activations::keep);
  std::fill(choices.end() - recompute - recompute_mlp, choices.end(), Activations::recompute_mlp);
  std::fill(choices.end() - recompute, choices.end(), Activations::recompute);
  return choices;
}

// What may be given up, apart from what layers keep.
struct Setup {
  std::optional<TrainedHeadOptions> head;
  bool one_room = false;
  std::uint32_t mlp_chunk = 0, chunk = 0, streamed = 0;
  bool on_disk = false;  // the streamed layers
  TablePlaces tables;
  MemoryPlace moments = MemoryPlace::device;  // of the adapters
};

class Planner {
 public:
  Planner(const TrainOptions& options, const gpu::Device& device, const ModelConfig& config, ProductPath path, BatchRoom room,
          MemoryBudget budget, const StepRates& rates, bool trains = true)
      : trains_(trains), options_(options), device_(device), config_(config), path_(path), room_(room), budget_(budget),
        cost_{.info = device.info(), .config = config, .path = path,
              .carried = path == ProductPath::matrix && memory_of(device.info(), options.stream) == gpu::HostMemory::carried, .room = room, .trains = trains,
              .work = StepWork(config, options.lora.rank, options.max_length, options.train_head), .rates = rates,
              .layer_bytes = static_cast<double>(nf4_layer_bytes(config, options.stream.double_quant))},
        lora_elements_(lora_elements(config, options.lora)) {}

  // With seconds by `estimate`.
  Placement best(const StepRates& estimate) {
    check<UsageError>(most_offloaded() <= config_.num_layers, "--offload-inputs", "The model has {} layers, not {}.", config_.num_layers,
                      most_offloaded());
    check<UsageError>(most_offloaded() == 0 || gpu::has_host_tensors(device_.info()), "--offload-inputs",
                      "{} cannot reach memory of this process.", device_.info().name);
    check_said_chunk();
    weigh_parts();
    consider_all(options_.stream.on_disk);
    if (ram_lacked_ && may_choose_disk()) consider_all(true);
    if (best_) return placement(*best_, estimate);
    const bool held = fits(least_->bytes);  // by the device, if not by host memory
    check<UsageError>(!budget_.promised || held, "--vram-limit",
                      "This run needs at least {} of GPU memory with all given up that the other options allow; the limit is {}.",
                      exact_bytes(least_->bytes + budget_.driver), exact_bytes(budget_.bytes + budget_.driver));
    check<UsageError>(!budget_.ram_promised || (!held && least_in_ram_), "--ram-limit",
                      "This run needs at least {} of host memory with all given up that the other options allow; the limit is {}.", exact_bytes(least_ram_->ram),
                      exact_bytes(budget_.ram));
    if (held) return placement(*least_ram_, estimate);
    return placement(least_in_ram_ ? *least_in_ram_ : *least_, estimate);
  }

 private:
  void consider_all(bool on_disk) {
    for (const auto& head : heads()) {
      for (const bool one_room : rooms()) {
        for (const std::uint32_t mlp_chunk : mlp_chunks()) {
          for (const TablePlaces& tables : table_choices()) {
            for (const std::uint32_t chunk : chunks(tables)) consider_weights({head, one_room, mlp_chunk, chunk, 0, on_disk, tables});
          }
        }
      }
    }
  }

  void consider_weights(Setup setup) {
    for (setup.streamed = 0; setup.streamed <= most_streamed(); ++setup.streamed) {
      for (const MemoryPlace moments : moment_places()) {
        setup.moments = moments;
        consider(setup);
      }
    }
  }

  struct Candidate {
    Setup setup;
    std::uint32_t offloaded = 0, recompute_mlp = 0, recompute = 0;  // layers
    std::uint64_t bytes = 0, ram = 0;
    double extra_seconds = 0;
  };

  std::vector<std::optional<TrainedHeadOptions>> heads() const {
    if (!options_.train_head) return {std::nullopt};
    TrainedHeadOptions head{.path = path_, .moments = options_.head_moments, .place = options_.head_state.value_or(MemoryPlace::device)};
    std::vector<std::optional<TrainedHeadOptions>> all = {head};
    head.place = MemoryPlace::host;
    if (!options_.head_state) all.push_back(head);
    return all;
  }

  std::vector<MemoryPlace> moment_places() const {
    if (options_.lora_state) return {*options_.lora_state};
    return {MemoryPlace::device, MemoryPlace::host};
  }
  MomentsOptions moments(const Setup& setup) const { return {.kind = options_.lora_moments, .place = setup.moments}; }

  std::vector<bool> rooms() const {
    if (options_.shared_decode) return {*options_.shared_decode};
    return {false, true};
  }

  // What is said of a chunk holds, as far as it can.
  void check_said_chunk() const {
    const Checkpointing said = options_.gradient_checkpointing;
    check_mlp_chunk(config_, {said == Checkpointing::automatic ? Activations::recompute : activations_under(said)}, options_.mlp_chunk);
  }

  // Halves, quarters and so on of a batch's rows, where MLPs may be computed again.
  std::vector<std::uint32_t> mlp_chunks() const {
    if (options_.mlp_chunk > 0) return {options_.mlp_chunk};
    std::vector<std::uint32_t> all = {0};
    if (config_.has_experts() || options_.gradient_checkpointing == Checkpointing::off) return all;
    constexpr std::uint32_t multiple = 2 * mlp_chunk_multiple, least = 2 * multiple;
    for (std::uint32_t parts = 2; room_.tokens / parts >= least; parts *= 2) {
      all.push_back((room_.tokens / parts + multiple - 1) / multiple * multiple);
    }
    return all;
  }

  std::vector<std::uint32_t> chunks(const TablePlaces& tables) const {
    if (options_.head_chunk > 0) return {options_.head_chunk};
    const HeadOptions usual = head_of({.tables = tables});
    std::vector<std::uint32_t> all = {usual.chunk_rows};
    while (all.back() > 64) all.push_back(std::max(64u, all.back() / 2));
    return all;
  }

  HeadOptions head_of(const Setup& setup) const {
    return Head::settled(device_.info(), config_, head_options(device_.info(), config_, model(setup), !options_.train_head));
  }

  // Where it is not said how streamed layers are kept.
  bool may_choose_disk() const { return !options_.stream.memory && !options_.stream.on_disk; }

  // What is said of the weights holds.
  std::uint32_t most_streamed() const { return options_.residency || options_.stream_layers ? 0 : config_.num_layers; }
  std::vector<TablePlaces> table_choices() const {
    const bool tied = config_.tie_word_embeddings, has_head = tied || !options_.train_head;
    const TablePlaces said = table_places(options_.stream, tied);
    std::vector<TablePlaces> all = {said};
    if (options_.lora.trains_tokens()) return all;
    if (options_.residency || !gpu::supports(device_.info(), gpu::HostMemory::direct)) return all;
    if (!said.embedding_on_host) all.push_back({true, tied || said.head_on_host});
    if (has_head && !all.back().head_on_host) all.push_back({true, true});
    return all;
  }
  std::uint32_t most_offloaded() const {
    if (options_.offload_inputs) return *options_.offload_inputs;
    return gpu::has_host_tensors(device_.info()) ? config_.num_layers : 0;
  }
  std::uint32_t least_offloaded() const { return options_.offload_inputs.value_or(0); }

  ModelOptions model(const Setup& setup) const {
    const Residency rest = options_.residency.value_or(Residency::resident);
    const auto said = setup.streamed > 0 ? setup.streamed : options_.stream_layers;
    StreamOptions stream = options_.stream;
    stream.embedding = setup.tables.embedding_on_host;
    stream.head = setup.tables.head_on_host;
    stream.on_disk = setup.on_disk;
    return {.path = path_, .residency = choose_residency(config_.num_layers, rest, said), .stream = stream,
            .mlp_chunk = setup.mlp_chunk, .one_decoded_room = setup.one_room, .max_tokens = room_.tokens,
            .max_labels = room_.labels, .head_chunk = setup.chunk, .trainable = trains_, .lora_dropout = options_.lora.lora_dropout > 0};
  }

  Placement placement(const Candidate& candidate, const StepRates& estimate) {
    cost_.rates = estimate;
    Placement result{.model = model(candidate.setup), .head = candidate.setup.head, .moments = moments(candidate.setup), .memory = {}};
    result.model.activations = choices_of(config_.num_layers, candidate.recompute_mlp, candidate.recompute);
    result.model.offloaded_inputs = candidate.offloaded;
    result.memory = plan_memory(device_, config_, result.model, options_.lora, result.head, result.moments);
    result.extra_seconds = seconds_of(candidate);
    result.pass_seconds = cost_.pass() + result.extra_seconds;
    return result;
  }

  MemoryPlan plan_with(const Setup& setup, ActivationChoices choices) const {
    ModelOptions options = model(setup);
    options.activations = std::move(choices);
    return plan_memory(device_, config_, options, options_.lora, setup.head, moments(setup));
  }
  std::uint64_t bytes_with(const Setup& setup, ActivationChoices choices) const { return plan_with(setup, std::move(choices)).total(); }

  // What activations and inputs take. That of no two layers need be the same (LayerArenas).
  void weigh_parts() {
    const TablePlaces tables = table_choices().front();
    const Setup any{heads().front(), rooms().front(), 0, chunks(tables).front(), 0, options_.stream.on_disk, tables, moment_places().front()};
    const std::uint32_t layers = config_.num_layers;
    const std::uint64_t least = bytes_with(any, choices_of(layers, 0, layers)), without_mlp = bytes_with(any, choices_of(layers, layers, 0));
    const auto inputs = [&](std::uint32_t offloaded) {
      return LayerInputs::bytes(device_.info(), config_, {.max_tokens = room_.tokens, .offloaded = offloaded}).device;
    };
    for (std::uint32_t kept = 0; kept <= layers; ++kept) {
      attention_bytes_.push_back(bytes_with(any, choices_of(layers, kept, layers - kept)) - least);
      mlp_bytes_.push_back(bytes_with(any, choices_of(layers, layers - kept, 0)) - without_mlp);
      offloading_saves_.push_back(inputs(0) - inputs(kept));
    }
    input_bytes_ = gpu::buffer_bytes(DType::f32, {room_.tokens, config_.hidden_size});
    input_ram_ = gpu::host_tensor_bytes(device_.info(), DType::f32, {room_.tokens, config_.hidden_size});
  }

  void consider(const Setup& setup) {
    const Checkpointing said = options_.gradient_checkpointing;
    const std::uint32_t layers = config_.num_layers;
    const double seconds = setup_seconds(setup);
    if (best_ && seconds >= best_->extra_seconds) return;
    const MemoryPlan plan = plan_with(setup, {said == Checkpointing::automatic ? Activations::recompute : activations_under(said)});
    const std::uint64_t least = plan.total();
    const Streamed streamed = streamed_layers(setup);
    for (std::uint32_t offloaded = least_offloaded(); offloaded <= most_offloaded(); ++offloaded) {
      Candidate candidate{.setup = setup, .offloaded = offloaded, .bytes = least - offloading_saves_[offloaded],
                          .ram = plan.host_total() + offloaded * input_ram_};
      if (said == Checkpointing::automatic || said == Checkpointing::on) candidate.recompute = layers;
      if (said == Checkpointing::mlp) candidate.recompute_mlp = layers;
      candidate.extra_seconds = seconds + cost_.offloaded_inputs(offloaded, input_bytes_);
      if (best_ && candidate.extra_seconds >= best_->extra_seconds) return;
      if (said == Checkpointing::automatic) {
        keep_what_fits(candidate, streamed);
      } else {
        candidate.extra_seconds += cost_.layers(candidate.recompute_mlp, candidate.recompute, streamed, setup.mlp_chunk);
      }
      take(candidate);
    }
  }

  // From all layers computing all but their input again to as much kept as fits in the least time.
  void keep_what_fits(Candidate& candidate, Streamed streamed) const {
    const std::uint32_t layers = config_.num_layers;
    const double before = candidate.extra_seconds;
    const std::uint64_t least = candidate.bytes;
    const std::uint32_t chunk = candidate.setup.mlp_chunk;
    candidate.extra_seconds = before + cost_.layers(0, layers, streamed, chunk);
    if (!fits(least)) return;
    for (std::uint32_t recompute = 0; recompute < layers; ++recompute) {
      const std::uint64_t attention = attention_bytes_[layers - recompute];
      if (!fits(least + attention)) continue;
      // The most layers whose MLP fits too.
      const auto most = mlp_bytes_.begin() + (chunk > 0 ? 0 : layers - recompute);
      const auto kept = std::partition_point(mlp_bytes_.begin() + 1, most + 1, [&](std::uint64_t mlp) { return fits(least + attention + mlp); }) - 1;
      const auto given_up = layers - static_cast<std::uint32_t>(kept - mlp_bytes_.begin());
      const double seconds = before + cost_.layers(given_up - recompute, recompute, streamed, chunk);
      if (seconds >= candidate.extra_seconds) continue;
      candidate.extra_seconds = seconds;
      candidate.recompute = recompute;
      candidate.recompute_mlp = given_up - recompute;
      candidate.bytes = least + attention + *kept;
    }
  }

  void take(const Candidate& candidate) {
    const auto on_device = [](const Candidate& c) { return std::pair(c.bytes, c.ram); };
    const auto on_host = [this](const Candidate& c) { return std::pair(!fits(c.bytes), c.ram); };
    const auto keep = [&](std::optional<Candidate>& least, const auto& by) {
      if (!least || by(candidate) < by(*least)) least = candidate;
    };
    keep(least_, on_device);
    keep(least_ram_, on_host);
    if (budget_.ram > 0 && candidate.ram > budget_.ram) {
      ram_lacked_ = true;
      return;
    }
    keep(least_in_ram_, on_device);
    if (fits(candidate.bytes)) keep(best_, [](const Candidate& c) { return c.extra_seconds; });
  }

  bool fits(std::uint64_t bytes) const { return budget_.bytes == 0 || bytes <= budget_.bytes; }

  Streamed streamed_layers(const Setup& setup) const {
    return {.layers = count_of(model(setup).residency, config_.num_layers, Residency::streamed), .on_disk = setup.on_disk};
  }

  // What saving memory costs a pass.
  double seconds_of(const Candidate& candidate) const {
    return setup_seconds(candidate.setup) + cost_.offloaded_inputs(candidate.offloaded, input_bytes_) +
           cost_.layers(candidate.recompute_mlp, candidate.recompute, streamed_layers(candidate.setup), candidate.setup.mlp_chunk);
  }

  double setup_seconds(const Setup& setup) const {
    double seconds = cost_.head(head_of(setup));
    if (setup.one_room) seconds += cost_.one_room();
    if (setup.mlp_chunk > 0) seconds += cost_.mlp_chunks(setup.mlp_chunk, setup.one_room);
    if (setup.tables.embedding_on_host) seconds += cost_.embedding_rows();
    if (setup.head) seconds += cost_.state_on_host(TrainedHead::bytes(device_.info(), config_, *setup.head).host);
    if (setup.moments == MemoryPlace::host) seconds += cost_.state_on_host(Moments::bytes(device_.info(), lora_elements_, moments(setup)).host);
    return seconds;
  }

  bool trains_;
  const TrainOptions& options_;
  const gpu::Device& device_;
  const ModelConfig& config_;
  ProductPath path_;
  BatchRoom room_;
  MemoryBudget budget_;
  PlanCost cost_;
  std::uint64_t lora_elements_;
  std::vector<std::uint64_t> attention_bytes_, mlp_bytes_;  // by how many layers keep them, beyond one set that all share
  std::vector<std::uint64_t> offloading_saves_;             // by how many inputs are
  std::uint64_t input_bytes_ = 0, input_ram_ = 0;
  std::optional<Candidate> best_;
  std::optional<Candidate> least_, least_in_ram_;  // that take the least of the device, of all and of those that host memory holds
  std::optional<Candidate> least_ram_;             // that takes the least host memory, of those that the device holds if there are any
  bool ram_lacked_ = false;
};

MemoryBudget device_budget(const MemoryLimit& limit, const gpu::AdapterInfo& info) {
  if (!limit.said()) return {.bytes = info.memory_bytes / 10 * 9};
  check<UsageError>(limit.bytes > 0 || info.memory_bytes > 0, "--vram-limit",
                    "{} does not say how much memory it has; give the limit in bytes, as 2GiB.", info.name);
  const double part = limit.part * static_cast<double>(info.memory_bytes);
  MemoryBudget budget{.bytes = limit.bytes > 0 ? limit.bytes : static_cast<std::uint64_t>(part), .promised = true};
  // Dawn's own was 4 to 16 MiB beside the buffers of a step on an H200. Smaller limits are those of tests.
  constexpr std::uint64_t driver = std::uint64_t{16} << 20, least = std::uint64_t{256} << 20;
  if (budget.bytes >= least) budget.driver = driver;
  budget.bytes -= budget.driver;
  return budget;
}

}  // namespace

MemoryBudget memory_budget(const TrainOptions& options, const gpu::AdapterInfo& info, std::optional<std::uint64_t> available_ram) {
  MemoryBudget budget = device_budget(options.vram_limit, info);
  const MemoryLimit& limit = options.ram_limit;
  check<UsageError>(limit.part == 0 || available_ram, "--ram-limit", "The system does not say how much memory there is; give the limit in bytes, as 8GiB.");
  budget.ram_promised = limit.said();
  const double part = limit.said() ? limit.part : 0.9;
  budget.ram = limit.bytes > 0 ? limit.bytes : static_cast<std::uint64_t>(part * static_cast<double>(available_ram.value_or(0)));
  return budget;
}

Placement place(const TrainOptions& options, const gpu::Device& device, const ModelConfig& config, ProductPath path,
                BatchRoom room, MemoryBudget budget, const StepRates& rates, const std::optional<StepRates>& estimate) {
  return Planner(options, device, config, path, room, budget, rates).best(estimate.value_or(rates));
}

Placement place_evaluation(TrainOptions options, const gpu::Device& device, const ModelConfig& config, ProductPath path, BatchRoom room,
                           MemoryBudget budget) {
  options.gradient_checkpointing = Checkpointing::off;
  options.offload_inputs = 0;
  options.mlp_chunk = 0;
  options.lora_state = MemoryPlace::device;
  options.train_head = false;
  options.lora.lora_dropout = 0;
  const StepRates rates = usual_rates(device.info(), path, room.tokens);
  return Planner(options, device, config, path, room, budget, rates, false).best(rates);
}

Placement on_its_disk(const StreamOptions& stream, MemoryBudget budget, const std::function<Placement(const MemoryBudget&)>& placed) {
  Placement placement = placed(budget);
  const std::uint64_t bytes = placement.memory.disk_weights;
  if (bytes == 0) return placement;
  try {
    check_scratch_folder(stream_folder(placement.model.stream), bytes, "--stream-dir");
    return placement;
  } catch (const DataError& error) {
    if (stream.on_disk || budget.ram_promised) throw;
    log_warning(fmt::format("Streamed layers stay in host memory, which may be too small for them: {}", error.what()));
  }
  budget.ram = 0;
  return placed(budget);
}

}  // namespace nibble
