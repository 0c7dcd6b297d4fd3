#include "nibble/base/error.h"
#include "nibble/model/model_state.h"
#include "nibble/weights/json_checkpoint.h"

// The one-file checkpoints of ModelState.
namespace nibble {
namespace {

void check_form(const LoraConfig& config, const ModelConfig& model) {
  check<UsageError>(!config.trains_tokens(), "model state", "Such a checkpoint has no place for rows of tokens; save the adapter as PEFT does.");
  check<UsageError>(!config.use_dora, "model state", "Such a checkpoint has no place for DoRA's magnitudes; save the adapter as PEFT does.");
  check<UsageError>(config.is_uniform() && config.is_of_all_layers(), "model state",
                    "Such a checkpoint has one rank and one alpha for every layer; the adapter's differ by module.");
  check<UsageError>(!adapts_experts(model, config), "model state", "Such a checkpoint has no place for adapters of experts.");
}

}  // namespace

std::filesystem::path ModelState::save_checkpoint(const std::filesystem::path& dir, std::uint64_t at_step, double loss) const {
  const LoraConfig& config = lora_config();
  check_form(config, config_);
  check<UsageError>(static_cast<bool>(lora_mirror().on_device()->grads), "model state",
                    "The adapter is not trainable and has no moments to save; load it with StateOptions::trainable.");
  const std::filesystem::path path =
      save_json_checkpoint(dir,
                           {.step = at_step, .rank = config.rank, .alpha = config.lora_alpha, .loss = loss,
                            .hidden_size = config_.hidden_size},
                           lora());
  if (trained_head_) save_head(head_file_of(path));
  return path;
}

ModelState::Position ModelState::load_checkpoint(const std::filesystem::path& path) {
  const LoraConfig& config = lora_config();
  check_form(config, config_);
  JsonCheckpoint checkpoint = load_json_checkpoint(path, config_, config);
  check<DataError>(checkpoint.header.alpha == config.lora_alpha, path.string(),
                   "The checkpoint's alpha is {}; the state's adapter has {}.", checkpoint.header.alpha, config.lora_alpha);
  const std::filesystem::path head = head_file_of(path);
  const bool has_head = std::filesystem::exists(head);
  check<DataError>(has_head == (trained_head_ != nullptr), path.string(), "{}",
                   has_head ? "A trained head lies beside the checkpoint; call train_head first."
                            : fmt::format("The state's head is trained, and {} is missing.", head.filename().string()));
  if (has_head) load_head(head);
  edit_lora() = std::move(checkpoint.layers);
  step = checkpoint.header.step;
  return {.step = checkpoint.header.step, .loss = checkpoint.header.loss};
}

}  // namespace nibble
