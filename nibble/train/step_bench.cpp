#include "nibble/train/step_bench.h"

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/train/optimizer.h"
#include "nibble/train/step_work.h"

#include <algorithm>
#include <chrono>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct MadeUpBatch {
  std::vector<std::uint32_t> tokens, position, begin, end, label_rows, labels;

  MadeUpBatch(const StepBenchOptions& options) {
    Rng rng(1);
    for (std::uint32_t segment = 0; segment < options.batch; ++segment) {
      const auto first = static_cast<std::uint32_t>(tokens.size());
      for (std::uint32_t i = 0; i < options.length; ++i) {
        if (i + 1 < options.length) label_rows.push_back(first + i);
        tokens.push_back(rng.below(options.config.vocab_size));
        position.push_back(i);
        begin.push_back(first);
        end.push_back(first + options.length);
      }
    }
    for (const std::uint32_t row : label_rows) labels.push_back(tokens[row + 1]);
  }
  TokenStream stream() const {
    return {.tokens = tokens, .position = position, .segment_begin = begin, .segment_end = end, .label_rows = label_rows,
            .labels = labels};
  }
};

// What one of `steps` steps added to the sums of `before`.
std::vector<gpu::ProfileRow> profile_of_one(std::vector<gpu::ProfileRow> rows, const std::vector<gpu::ProfileRow>& before,
                                            std::uint32_t steps) {
  for (gpu::ProfileRow& row : rows) {
    const auto first = std::find_if(before.begin(), before.end(), [&](const auto& r) { return r.label == row.label; });
    const gpu::ProfileRow sums = first == before.end() ? gpu::ProfileRow{} : *first;
    row.count = (row.count - sums.count) / steps;
    row.seconds = (row.seconds - sums.seconds) / steps;
    row.bytes = (row.bytes - sums.bytes) / steps;
    row.flops = (row.flops - sums.flops) / steps;
  }
  std::erase_if(rows, [](const gpu::ProfileRow& row) { return row.count == 0; });
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  return rows;
}

// To the device so far, of the weights of streamed layers.
std::uint64_t copied_bytes(const ModelState& state) {
  const auto& stream = state.weights().stream;
  return stream ? stream->copied_bytes() : 0;
}

// Asked of the disk so far, where they lie there.
std::uint64_t read_bytes(const ModelState& state) {
  const auto& stream = state.weights().stream;
  return stream && stream->disk() ? stream->disk()->read_bytes() : 0;
}

// Of copies of all streamed layers that nothing else goes on beside; 0 where there are none, or a disk is waited for between them.
double copy_seconds_a_byte(const ModelState& state) {
  const auto& stream = state.weights().stream;
  if (!stream || stream->disk()) return 0;
  stream->go(LayerOrder::up);
  double least = 0;
  for (int i = 0; i < 3; ++i) {
    const std::uint64_t before = stream->copied_bytes();
    const auto start = Clock::now();
    gpu::Recorder recorder(state.device());
    for (std::uint32_t layer = 0; layer < state.num_layers(); ++layer) {
      if (stream->has(layer)) stream->projections(recorder, layer);
    }
    recorder.submit();
    state.device().wait("copies");
    const auto bytes = static_cast<double>(stream->copied_bytes() - before);
    if (bytes > 0) least = least == 0 ? seconds_since(start) / bytes : std::min(least, seconds_since(start) / bytes);
  }
  return least;
}

// A model and what one step needs beside it.
class Stepper {
 public:
  Stepper(ModelState& state, const StepBenchOptions& options)
      : device_(state.device()),
        state_(state),
        model_(state, {.residency = options.residency, .stream = options.stream, .activations = options.activations,
                       .mlp_chunk = options.mlp_chunk, .one_decoded_room = options.one_decoded_room, .offloaded_inputs = options.offloaded_inputs,
                       .max_tokens = options.tokens(), .max_labels = options.tokens(), .head_chunk = options.head_chunk}),
        lora_(*state.lora_mirror().train()),
        moments_(state.lora_mirror().moments()),
        optimizer_(device_, {}),
        batch_(options) {}

  // Seconds of a step and, in `record_seconds`, while the CPU recorded and submitted.
  double step() {
    const auto start = Clock::now();
    TrainedHead* head = state_.trained_head();
    gpu::Recorder recorder(device_);
    const DeviceStream stream = model_.upload(recorder, batch_.stream());
    recorder.clear(lora_.grads);
    if (head) recorder.clear(head->gradient());
    losses_ = model_.loss_and_gradients(recorder, stream, {.factor = 1.0f / static_cast<float>(batch_.labels.size())}, {},
                                        head ? head->gradient() : Tensor{}).loss;
    optimizer_.record_step(recorder, lora_, moments_, 1e-4, ++done_, head);
    recorder.submit();
    record_seconds = seconds_since(start);
    device_.read<float>(optimizer_.norm_and_factor());
    if (head) head->settle();
    return seconds_since(start);
  }

  double mean_loss() {
    double sum = 0;
    for (const float loss : device_.read<float>(losses_)) sum += loss;
    return sum / static_cast<double>(batch_.labels.size());
  }

  double record_seconds = 0;
  std::uint64_t done() const { return done_; }

 private:
  gpu::Device& device_;
  ModelState& state_;
  Model model_;
  const LoraWeights& lora_;
  Moments& moments_;
  Optimizer optimizer_;
  MadeUpBatch batch_;
  std::uint64_t done_ = 0;
  Tensor losses_;
};

}  // namespace

StepBenchResult bench_step(gpu::Device& device, const StepBenchOptions& options) {
  ModelState state = ModelState::made_up(
      device, options.config,
      {.path = options.path, .lora = LoraConfig{.rank = options.lora_rank, .lora_alpha = 2.0 * options.lora_rank, .target_modules = usual_targets(options.config)},
       .moments = options.moments, .residency = options.residency, .stream = options.stream});
  if (options.head) state.train_head(*options.head);
  Stepper stepper(state, options);
  StepBenchResult result{.tokens = options.tokens()};
  // How many steps warm the device up is a matter of its speed, which the loss must not be.
  const auto step = [&] {
    const double seconds = stepper.step();
    if (stepper.done() == 1 + options.steps) result.loss = stepper.mean_loss();
    if (options.after_step) options.after_step(seconds);
    return seconds;
  };
  const auto warm = Clock::now();
  do {
    step();
  } while (seconds_since(warm) < 0.4);
  const auto before = device.profile();
  const std::uint64_t copied = copied_bytes(state), read = read_bytes(state);
  for (std::uint32_t i = 0; i < options.steps; ++i) result.seconds.push_back(step());
  result.record_seconds = stepper.record_seconds;
  result.kernels = profile_of_one(device.profile(), before, options.steps);
  const StepWork work(options.config, options.lora_rank, options.length, options.head.has_value());
  result.required_flops = options.tokens() * work.step();
  result.flops = result.required_flops + options.tokens() * work.again(options.activations);
  // In chunks the MLP of the very last layer is computed again too.
  if (options.mlp_chunk > 0) result.flops += options.tokens() * work.again(Activations::recompute_mlp);
  result.peak_bytes = device.memory().peak;
  result.host_bytes = device.memory().host;
  result.copied_bytes = (copied_bytes(state) - copied) / options.steps;
  result.read_bytes = (read_bytes(state) - read) / options.steps;
  if (const auto& stream = state.weights().stream; stream && stream->disk()) result.disk_bytes = stream->disk()->file_bytes();
  result.least_copy_seconds = static_cast<double>(result.copied_bytes) * copy_seconds_a_byte(state);
  result.driver_bytes = device.driver_memory();
  return result;
}

FirstSteps first_steps(ModelState& state, const StepBenchOptions& options) {
  const auto start = Clock::now();
  const std::uint64_t made = state.device().pipelines_made();
  Stepper stepper(state, options);
  stepper.step();
  FirstSteps result{.first_seconds = seconds_since(start), .pipelines = state.device().pipelines_made() - made};
  result.next_seconds = std::min(stepper.step(), stepper.step());
  result.loss = stepper.mean_loss();
  return result;
}

}  // namespace nibble
