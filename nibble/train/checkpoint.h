#pragma once

#include "nibble/data/sampler.h"
#include "nibble/io/json.h"
#include "nibble/model/model_state.h"

#include <filesystem>
#include <optional>

namespace nibble {

// Where a run stands, apart from the weights.
struct TrainState {
  std::uint64_t step = 0;           // updates done
  std::uint64_t total_steps = 0;
  double epoch = 0;
  std::uint64_t tokens = 0;
  data::Cursor cursor;
  std::optional<double> best_eval_loss;
  std::uint64_t best_step = 0;
  std::uint32_t evaluations_without_gain = 0;
  std::optional<std::uint64_t> evaluated_step;  // the last evaluation was after this update
  Json fingerprint;                 // of options, data and base: what the result depends on
};

// The content of trainer_state.json: the state under the names of transformers' Trainer, and `more` of its keys. What a resume
// needs beyond them stands under "nibble".
Json trainer_state(const TrainState& state, const std::filesystem::path& output, const Json& more);

// Writes OUTPUT/checkpoint-STEP: adapter_model.safetensors and adapter_config.json (PEFT), optimizer.safetensors (exp_avg.*
// and exp_avg_sq.* by PEFT's tensor names, as Moments::tensors has them) and trainer_state.json. The folder
// appears whole or not at all. Then removes the oldest beyond `keep`.
void save_checkpoint(const std::filesystem::path& output, const TrainState& state, const ModelState& model_state,
                     const LoraAdapter& adapter, const Json& more, std::uint32_t keep);

// Reads the state alone. Throws DataError where the folder is no checkpoint of nibble.
TrainState load_train_state(const std::filesystem::path& checkpoint);
// Fills the moments; the adapter itself is read as any other.
void load_optimizer(const std::filesystem::path& checkpoint, ModelState& model_state);

// The newest checkpoint-N of an output folder.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& output);
// The newest one of the run with this fingerprint, with a warning where later ones are of another run; where none is, the newest of all. DataError,
// which names the one before, where one cannot be read.
std::optional<std::filesystem::path> newest_checkpoint_of(const std::filesystem::path& output, const Json& fingerprint);

// Throws UsageError naming each setting that differs between the run that is resumed and this one.
void check_fingerprint(const Json& saved, const Json& now, const std::filesystem::path& checkpoint);

}  // namespace nibble
