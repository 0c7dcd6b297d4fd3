#pragma once

#include "nibble/data/dataset.h"
#include "nibble/kernels/operand.h"
#include "nibble/model/trained_head.h"
#include "nibble/train/loss.h"
#include "nibble/train/optimizer.h"
#include "nibble/train/schedule.h"
#include "nibble/weights/peft.h"
#include "nibble/weights/residency.h"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>

namespace nibble {

// Of activations: what the backward pass computes again.
enum class Checkpointing {
  automatic,  // what memory needs
  off,        // nothing
  mlp,        // the MLP's half of each layer
  on,         // all but each layer's input
};

// Memory that a run may take: bytes, or a part of what there is. Both 0: not said.
struct MemoryLimit {
  std::uint64_t bytes = 0;
  double part = 0;

  bool said() const { return bytes > 0 || part > 0; }
};

// "2GiB", "2048MiB", "8GB", "500000000", "80%". UsageError says what can be read, of the option.
MemoryLimit memory_limit_of(std::string_view text, std::string_view option = "--vram-limit");

// "auto", "off", "mlp", "on"
Checkpointing checkpointing_of(std::string_view name);

// Everything that a run is made of. The command line and a configuration file fill it; the names are those of Hugging Face's
// trainers where these have one.
struct TrainOptions {
  std::filesystem::path model, output;
  std::filesystem::path cache_dir;  // keeps the model quantised (nibble/weights/model_cache.h); empty: it is quantised each time
  data::DataFiles data, valid;
  double valid_fraction = 0;  // of the data's examples, where there is no file `valid`

  LoraConfig lora{.rank = 16, .lora_alpha = 32};
  bool usual_targets = false;  // lora.target_modules are those of the model's kind (peft.h)
  bool gaussian_init = false;  // of a new adapter's A
  std::filesystem::path init_adapter;  // start from this adapter; its rank, alpha and targets hold

  MomentKind lora_moments = MomentKind::f32;
  std::optional<MemoryPlace> lora_state;  // where the adapters' moments are kept; empty: on the device if they fit there

  bool train_head = false;                   // the head too
  MomentKind head_moments = MomentKind::f32;
  std::optional<MemoryPlace> head_state;     // where its master and moments are kept; empty: on the device if they fit there
  std::optional<double> head_learning_rate;  // empty: learning_rate

  std::vector<std::string> train_tokens;       // tokens whose rows of the embedding learn too: texts, which are added where they are new, or ids
  bool train_tokens_head = false;              // and their rows of a head that is not tied
  bool plain_tokens = false;                   // new ones are shown when text is decoded, as ordinary ones are
  std::optional<double> tokens_learning_rate;  // empty: learning_rate

  LossSettings loss;
  double neftune_alpha = 0;  // noise on the embeddings; 0: none

  double learning_rate = 2e-4;
  LrScheduler lr_scheduler = LrScheduler::cosine;
  double warmup_ratio = 0.03;
  std::uint64_t warmup_steps = 0;  // where not 0, instead of the ratio
  double min_lr_ratio = 0;
  AdamWOptions adamw;

  double epochs = 1;
  std::uint64_t max_steps = 0;  // where not 0, instead of epochs
  std::uint32_t batch_size = 8;
  std::uint32_t gradient_accumulation = 1;
  std::uint32_t max_length = 1024;
  bool packing = false;
  bool shuffle = true;
  std::uint64_t seed = 42;

  data::TrainOn train_on = data::TrainOn::assistant;
  data::Think think = data::Think::stock;
  std::string system;  // message that chats begin with where they have none of their own; empty: none
  data::Overflow overflow = data::Overflow::error;
  std::optional<data::RowForm> form;
  data::ColumnMap map;
  bool skip_bad_rows = false;

  std::optional<std::uint64_t> eval_every;  // steps; empty: a tenth of the run
  std::optional<std::uint64_t> save_every;  // steps, 0 for the end alone; empty: a tenth of the run
  std::uint32_t keep_checkpoints = 2;
  std::uint32_t early_stopping = 0;  // evaluations without a better loss; 0: never
  std::filesystem::path resume;      // a checkpoint folder; "auto" takes the newest of the output folder, if any

  std::optional<Residency> residency;  // of all layers but the streamed; empty: resident, and streamed where memory needs it
  // Layers of which the weights lie in host memory; empty: all under Residency::streamed, else none.
  std::optional<std::uint32_t> stream_layers;
  StreamOptions stream;
  Checkpointing gradient_checkpointing = Checkpointing::automatic;
  std::optional<std::uint32_t> offload_inputs;  // layers whose input lies in host memory between the passes; empty: what memory needs
  std::optional<bool> shared_decode;  // decoded projections share one room; empty: where memory needs it
  std::uint32_t mlp_chunk = 0;  // rows of which the MLP's values exist at a time; 0: all, and fewer where memory needs it
  std::uint32_t head_chunk = 0;
  MemoryLimit vram_limit;
  MemoryLimit ram_limit;  // of host memory, as a plan counts it
  bool dry_run = false;  // stop after the plan
};

}  // namespace nibble
