// The state of a fine-tune through the library: example_state MODEL DATA FOLDER
// Loads a model, takes ten steps, saves them in one file, loads that into a second state and goes on there.

#include "nibble/base/error.h"
#include "nibble/train/run_data.h"
#include "nibble/train/trainer.h"

#include <fmt/format.h>

namespace {

void train_and_resume(const char* model_dir, const char* rows, const char* folder) {
  nibble::gpu::Device device;  // the best GPU there is
  const auto data = nibble::open_run_data({.model = model_dir, .data = rows});
  const nibble::data::Batch batch = data->train.batch(std::vector<std::uint32_t>{0, 1, 2, 3});
  const nibble::TokenStream batches[] = {nibble::stream_of(batch)};
  const auto room = static_cast<std::uint32_t>(batch.tokens.size());
  const nibble::TrainerOptions options{.model = {.max_tokens = room, .max_labels = room}};

  nibble::ModelState state = nibble::ModelState::load_qwen3_4b(device, model_dir, 8, 16);  // any Qwen3; rank 8, alpha 16
  nibble::Trainer trainer(state, options);
  fmt::print("{}: {} trainable parameters\n", trainer.adapter_info(), state.trainable_params());
  nibble::StepResult result;
  while (trainer.current_step() < 10) {
    result = trainer.full_train_step(batches, 2e-3);
    fmt::print("step {}: loss {:.4f}\n", trainer.current_step(), result.loss);
  }
  const auto checkpoint = state.save_checkpoint(folder, trainer.current_step(), result.loss);

  nibble::ModelState again = nibble::ModelState::load_qwen3_4b(device, model_dir, 8, 16);
  const auto position = again.load_checkpoint(checkpoint);
  fmt::print("loaded {}: step {}, loss {:.4f}\n", checkpoint.string(), position.step, position.loss);
  nibble::Trainer resumed(again, options);
  const double expected = trainer.full_train_step(batches, 2e-3).loss, found = resumed.full_train_step(batches, 2e-3).loss;
  fmt::print("step {}: loss {:.4f}, {} without the break\n", resumed.current_step(), found,
             found == expected ? "the same as" : "other than");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    fmt::print(stderr, "usage: {} MODEL DATA FOLDER\n", argv[0]);
    return 2;
  }
  try {
    train_and_resume(argv[1], argv[2], argv[3]);
  } catch (const nibble::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
