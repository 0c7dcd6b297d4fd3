#pragma once

#include "nibble/cli/device_flags.h"
#include "nibble/cli/lora_flags.h"
#include "nibble/cli/residency_flags.h"
#include "nibble/cli/row_flags.h"
#include "nibble/train/train.h"

#include <string>
#include <vector>

namespace nibble::cli {

// The options of `nibble train`, declared once: the parser, --help, --config and config.toml come from here.
struct TrainFlags {
  TrainOptions options;
  DeviceFlags device;
  ResidencyFlags residency{.name = "auto"};

  void add_to(CLI::App& verb);
  // Gives the options of AdamW that the user left out what --recipe says, so that config.toml has them too.
  void apply_recipe(CLI::App& verb);
  // Turns words into values; throws UsageError, also where an option asks for another adapter than that of --init-adapter.
  void finish();

 private:
  const CLI::App* verb_ = nullptr;  // that the options were added to

  void add_files(CLI::App& verb);
  void add_adapter(CLI::App& verb);
  void add_head(CLI::App& verb);
  void add_tokens(CLI::App& verb);
  void add_loss(CLI::App& verb);
  void add_optimisation(CLI::App& verb);
  void add_data(CLI::App& verb);
  void add_run(CLI::App& verb);
  void finish_patterns();
  void finish_start();
  void check_init_adapter() const;
  bool given(const std::string& option) const { return !verb_->get_option("--" + option)->empty(); }
  void add_memory(CLI::App& verb);

  RowFlags rows_;
  std::vector<std::string> valid_;
  LoraFlags lora_;
  std::string init_lora_weights_ = "true";
  std::vector<std::string> rank_pattern_, alpha_pattern_, layers_to_transform_;
  std::string loss_ = "sft", recipe_ = "pytorch", lr_scheduler_ = "cosine", shuffle_ = "on", train_on_ = "assistant",
              overflow_ = "error", form_ = "auto", gradient_checkpointing_ = "auto", head_moments_ = "f32", head_state_ = "auto", lora_moments_ = "f32", lora_state_ = "auto";
  std::string shared_decode_ = "auto", vram_limit_, ram_limit_;
  std::int64_t eval_every_ = -1, save_every_ = -1;
};

}  // namespace nibble::cli
