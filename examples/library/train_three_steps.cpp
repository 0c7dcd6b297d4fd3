// Fine-tunes a model for three steps through the library: example_library MODEL DATA OUTPUT
// MODEL is a Hugging Face folder, DATA a JSONL file, OUTPUT becomes a PEFT adapter.

#include "nibble/base/error.h"
#include "nibble/kernels/product.h"
#include "nibble/train/train.h"

#include <fmt/format.h>

namespace {

void train_three_steps(const char* model, const char* data, const char* output) {
  nibble::gpu::Device device;  // the best GPU there is
  const nibble::ProductPath path = nibble::fastest_path(device.info());
  fmt::print("{}\n", device.info().name);

  nibble::TrainOptions options;
  options.model = model;
  options.data = data;
  options.output = output;
  options.lora.rank = 8;
  options.lora.lora_alpha = 16;
  options.learning_rate = 2e-3;
  options.batch_size = 4;
  options.max_steps = 3;

  // The library prints nothing; what happens is told through these.
  nibble::TrainEvents events;
  events.plan = [](const nibble::RunPlan& plan) {
    fmt::print("{} trainable parameters, {} bytes on the GPU\n", plan.trainable_parameters, plan.memory.total());
  };
  events.step = [](const nibble::StepRecord& step) {
    fmt::print("step {}: loss {:.4f}, gradient norm {:.3f}\n", step.step, step.loss, step.grad_norm);
  };
  const nibble::TrainResult result = nibble::train(options, device, path, events);
  fmt::print("The adapter after {} steps is in {}.\n", result.step, output);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    fmt::print(stderr, "usage: {} MODEL DATA OUTPUT\n", argv[0]);
    return 2;
  }
  try {
    train_three_steps(argv[1], argv[2], argv[3]);
  } catch (const nibble::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
