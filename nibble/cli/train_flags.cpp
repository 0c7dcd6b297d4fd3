#include "nibble/cli/train_flags.h"

#include "nibble/base/error.h"
#include "nibble/cli/adapter_check.h"
#include "nibble/cli/cache_flag.h"
#include "nibble/cli/usage.h"
#include "nibble/weights/lora_start.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

namespace nibble::cli {
namespace {

template <typename Value>
bool parse_whole(std::string_view text, Value& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

constexpr int most_tokens = 4096;

// Of AdamW, whose arithmetic is f32.
std::string refuse_no_epsilon(const std::string& value) {
  const auto epsilon = static_cast<float>(std::strtod(value.c_str(), nullptr));
  return epsilon > 0 && epsilon <= 1 ? std::string() : fmt::format("{} cannot be divided by; give more than 0 and at most 1, as 1e-8", value);
}

// "KEY=VALUE"
template <typename Value>
std::pair<std::string, Value> split_pattern(std::string_view option, const std::string& text) {
  const auto equals = text.rfind('=');
  Value value{};
  check<UsageError>(equals != text.npos && equals > 0 && parse_whole(std::string_view(text).substr(equals + 1), value), option,
                    "\"{}\" cannot be taken; give NAME=NUMBER, as down_proj=32.", text);
  return {text.substr(0, equals), value};
}

// "3" or "4-7"
void add_layers(const std::string& text, std::vector<std::uint32_t>& layers) {
  constexpr std::uint32_t most = 4096;
  const auto dash = text.find('-');
  std::uint32_t first = 0, last = 0;
  bool good = parse_whole(std::string_view(text).substr(0, dash), first);
  last = first;
  if (dash != text.npos) good = good && parse_whole(std::string_view(text).substr(dash + 1), last);
  check<UsageError>(good && first <= last && last < most, "--layers-to-transform",
                    "\"{}\" is no layer; give numbers from 0, or ranges as 4-7, below {}.", text, most);
  for (std::uint32_t layer = first; layer <= last; ++layer) layers.push_back(layer);
}

}  // namespace


void TrainFlags::add_to(CLI::App& verb) {
  verb_ = &verb;
  add_files(verb);
  add_adapter(verb);
  add_loss(verb);
  add_head(verb);
  add_tokens(verb);
  add_optimisation(verb);
  add_data(verb);
  add_run(verb);
  add_memory(verb);
  device.add_to(verb, DeviceFlags::AdapterOption::names_gpu);
}

void TrainFlags::add_files(CLI::App& verb) {
  auto* group = verb.add_option_group("Files");
  group->add_option("--model", options.model, "Model: a folder with config.json, tokenizer.json and safetensors, or a GGUF file")->required();
  add_cache_option(*group, options.cache_dir);
  rows_.add_data(*group, "Training rows, JSONL or CSV: one file, several, or - (standard input); as a.jsonl:0.7 b.jsonl:0.3 drawn in these\n"
                         "proportions")->required();
  group->add_option("--valid", valid_, "Validation rows, one file or several");
  group->add_option("--valid-fraction", options.valid_fraction, "Part of the training rows to validate on instead, as 0.05")->capture_default_str();
  group->add_option("--output", options.output, "Folder for the adapter, metrics.jsonl and checkpoints")->required();
  group->add_option("--init-adapter", options.init_adapter, "Start from this PEFT adapter; its rank, alpha and targets hold, and options that ask for others are refused");
  group->add_option("--resume", options.resume,
                    "Go on from a checkpoint folder, or \"auto\": the newest of the same run in --output, if there is one");
}

void TrainFlags::add_adapter(CLI::App& verb) {
  auto* group = verb.add_option_group("Adapter");
  lora_.add_to(*group, options.lora);
  group->add_flag("--use-dora", options.lora.use_dora, "DoRA: the length of each row of the adapted weights is trained by itself");
  group->add_option("--lora-dropout", options.lora.lora_dropout, "Dropout of the adapters' inputs")->capture_default_str();
  group->add_option("--lora-moments", lora_moments_, "AdamW's moments of the adapters: f32, or 8bit in blocks of 256, which learn nearly alike")
      ->check(CLI::IsMember({"f32", "8bit"}))->capture_default_str();
  group->add_option("--lora-state", lora_state_,
                    "Where these moments are kept: device, host (slower, to the same results), or auto: host where memory needs it")
      ->check(CLI::IsMember({"auto", "device", "host"}))->capture_default_str();
  group->add_option("--init-lora-weights", init_lora_weights_,
                    "Start of a new adapter: true (A uniform, B zero) or gaussian (A normal). `nibble quantize` makes the starts that change\n"
                    "the base: pissa, pissa_niter_N and loftq")
      ->capture_default_str();
  group->add_option("--rank-pattern", rank_pattern_,
                    "Other ranks for modules whose name ends so, a regular expression, as down_proj=32 'layers.[0-3].mlp.*=8'");
  group->add_option("--alpha-pattern", alpha_pattern_, "The same for alpha");
  group->add_option("--layers-to-transform", layers_to_transform_, "Layers to adapt, from 0, as 0,2,4-7; left out, all")->delimiter(',');
}

void TrainFlags::add_loss(CLI::App& verb) {
  auto* group = verb.add_option_group("Loss");
  group->add_option("--loss", loss_, "sft: likelihood of the trained tokens; dpo, orpo: of pairs of answers (rows with chosen and rejected)")
      ->check(CLI::IsMember({"sft", "dpo", "orpo"}))->capture_default_str();
  group->add_option("--beta", options.loss.beta, "DPO's beta, how far the adapter may go from the base; ORPO's lambda")
      ->capture_default_str();
  group->add_option("--focal-gamma", options.loss.focal_gamma,
                    "Multiply each token's gradient by (1 - p)^gamma, p its probability; the reported loss stays as it is")
      ->capture_default_str();
}

void TrainFlags::add_head(CLI::App& verb) {
  auto* group = verb.add_option_group("Head");
  group->add_flag("--train-head", options.train_head,
                  "Train the head (lm_head) too; one that is tied to the embedding becomes its own, and the embedding stays");
  group->add_option("--head-moments", head_moments_, "AdamW's moments of the head: f32, or 8bit in blocks of 256")
      ->check(CLI::IsMember({"f32", "8bit"}))->capture_default_str();
  group->add_option("--head-state", head_state_,
                    "Where values and moments of the head are kept: device, host (slower), or auto: host where memory needs it")
      ->check(CLI::IsMember({"auto", "device", "host"}))->capture_default_str();
  group->add_option("--head-learning-rate", options.head_learning_rate, "Highest learning rate of the head, if not --learning-rate")
      ->check(from_zero());
}

void TrainFlags::add_tokens(CLI::App& verb) {
  auto* group = verb.add_option_group("Tokens");
  group->add_option("--train-tokens", options.train_tokens,
                    "Train the rows of these tokens in the embedding too, and with them those of a tied head: texts, as '<tool>' '</tool>', or ids.\n"
                    "A text that is no token is added to the tokenizer, which is then saved with the adapter; its row begins at the mean")
      ->expected(1, most_tokens)
      ->allow_extra_args(false);  // or CLI11 would take '[TOOL]' for a list
  group->add_flag("--train-tokens-head", options.train_tokens_head, "And their rows of a head that is not tied to the embedding");
  group->add_flag("--plain-tokens", options.plain_tokens, "Add new tokens as ordinary ones, which answers show; left out, as special ones");
  group->add_option("--tokens-learning-rate", options.tokens_learning_rate, "Highest learning rate of these rows, if not --learning-rate")
      ->check(from_zero());
}

void TrainFlags::add_optimisation(CLI::App& verb) {
  auto* group = verb.add_option_group("Optimisation");
  group->add_option("--learning-rate", options.learning_rate, "Highest learning rate")->capture_default_str();
  group->add_option("--lr-scheduler", lr_scheduler_, "constant, linear or cosine")
      ->check(CLI::IsMember({"constant", "linear", "cosine"}))
      ->capture_default_str();
  group->add_option("--warmup-ratio", options.warmup_ratio, "Part of the steps in which the rate rises")
      ->capture_default_str()->check(CLI::Range(0.0, 1.0));
  group->add_option("--warmup-steps", options.warmup_steps, "The same in steps; 0: by the ratio")->capture_default_str();
  group->add_option("--min-lr-ratio", options.min_lr_ratio, "Where the rate falls to, as a part of the highest")
      ->capture_default_str()->check(CLI::Range(0.0, 1.0));
  group->add_option("--epochs", options.epochs, "Times through the data")->capture_default_str();
  group->add_option("--max-steps", options.max_steps, "Updates, instead of --epochs; 0: by --epochs")->capture_default_str();
  group->add_option("--batch-size", options.batch_size, "Rows of one pass; with --packing, sequences of --max-length tokens")
      ->capture_default_str()->check(CLI::Range(1u, 65536u));
  group->add_option("--gradient-accumulation", options.gradient_accumulation, "Passes of one update")
      ->capture_default_str()->check(CLI::Range(1u, 65536u));
  group->add_option("--max-grad-norm", options.adamw.max_grad_norm, "Clip gradients to this norm; 0: never")
      ->capture_default_str()->check(from_zero());
  group->add_option("--recipe", recipe_,
                    "Values of --weight-decay and --adam-* that are not given: pytorch (torch.optim.AdamW's, without decay), or\n"
                    "original (betas 0.9 and 0.95, epsilon 1e-8, decay 0.1: the recipe that this kind of fine-tune came with)")
      ->check(CLI::IsMember({"pytorch", "original"}))->capture_default_str();
  group->add_option("--weight-decay", options.adamw.weight_decay, "Decoupled weight decay")->capture_default_str()->check(from_zero());
  group->add_option("--adam-beta1", options.adamw.adam_beta1, "AdamW")->capture_default_str()->check(CLI::Range(0.0, 0.999999));
  group->add_option("--adam-beta2", options.adamw.adam_beta2, "AdamW")->capture_default_str()->check(CLI::Range(0.0, 0.99999999));
  group->add_option("--adam-epsilon", options.adamw.adam_epsilon, "AdamW; more than 0, at most 1")->capture_default_str()->check(refuse_no_epsilon);
  group->add_option("--loraplus-ratio", options.adamw.loraplus_ratio,
                    "LoRA+: the matrices B learn so many times faster than A, as 16; 1: alike")
      ->capture_default_str()->check(CLI::Range(1e-3, 1e6));
  group->add_option("--neftune-alpha", options.neftune_alpha,
                    "NEFTune: uniform noise of alpha / sqrt(length * hidden) on the embeddings while training, as 5; 0: none")
      ->capture_default_str()->check(CLI::Range(0.0, 1e6));
}

void TrainFlags::add_data(CLI::App& verb) {
  auto* group = verb.add_option_group("Data");
  group->add_option("--max-length", options.max_length, "Longest row in tokens; never above what the model was made for")
      ->capture_default_str()->check(CLI::Range(2u, 1u << 20));
  group->add_option("--overflow", overflow_,
                    "Longer rows: error (the run does not start), drop, cut, or split into several")
      ->check(CLI::IsMember({"error", "drop", "cut", "split"}))->capture_default_str();
  group->add_flag("--packing", options.packing, "Fill each pass with as many rows as fit; none sees another");
  group->add_option("--train-on", train_on_, "What the loss counts: assistant (every answer), last (the last answer), all")
      ->check(CLI::IsMember({"assistant", "last", "all"}))->capture_default_str();
  add_think_option(*group, options.think);
  add_system_option(*group, options.system);
  rows_.add_map(*group);
  group->add_option("--format", form_,
                    "Form of the rows: auto, messages, conversations, prompt-completion, instruction-output, "
                    "instruction-response, preference, classification, text")
      ->capture_default_str();
  group->add_flag("--skip-bad-rows", options.skip_bad_rows, "Leave out rows that cannot be used, and count them");
  group->add_option("--shuffle", shuffle_, "on, or off for the order of the file")->check(CLI::IsMember({"on", "off"}))->capture_default_str();
  group->add_option("--seed", options.seed, "Of the adapter, the order and dropout; the same seed gives the same bytes")
      ->capture_default_str();
}

void TrainFlags::add_run(CLI::App& verb) {
  auto* group = verb.add_option_group("Run");
  group->add_option("--eval-every", eval_every_, "Steps between evaluations; 0: at the end alone, -1: a tenth of the run")
      ->capture_default_str()->check(CLI::Range(std::int64_t{-1}, INT64_MAX));
  group->add_option("--save-every", save_every_, "Steps between checkpoints; 0: at the end alone, -1: a tenth of the run")
      ->capture_default_str()->check(CLI::Range(std::int64_t{-1}, INT64_MAX));
  group->add_option("--keep-checkpoints", options.keep_checkpoints, "The newest that stay")->capture_default_str()->check(CLI::Range(1, 1000000));
  group->add_option("--early-stopping", options.early_stopping, "Stop after so many evaluations without a lower loss; 0: never")
      ->capture_default_str();
  group->add_flag("--dry-run", options.dry_run, "Show what the run will take of memory, disk and time, and stop");
}

void TrainFlags::add_memory(CLI::App& verb) {
  auto* group = verb.add_option_group("Memory");
  group->add_option("--vram-limit", vram_limit_,
                    "GPU memory that the run may take, as 2GiB, 2048MiB, 8GB or 80% of the card's. What the options below leave open\n"
                    "is chosen to stay within it at the least cost of time. Not given: nine tenths of the card's");
  group->add_option("--ram-limit", ram_limit_,
                    "Host memory that the plan may take for weights, states and what is on its way to the GPU, as 8GiB or 50% of what is\n"
                    "available; streamed layers lie on a disk where it is too small for them. The program and the rows take some beside it.\n"
                    "Not given: nine tenths of what is available");
  group->add_option("--gradient-checkpointing", gradient_checkpointing_,
                    "What the backward pass computes again: off nothing; mlp the MLP's half of each layer; on all but each layer's\n"
                    "input; auto by layer what memory needs")
      ->check(CLI::IsMember({"auto", "off", "mlp", "on"}))->capture_default_str();
  group->add_option("--offload-inputs", options.offload_inputs,
                    "So many layers' inputs lie in host memory between the passes, as far as the driver can reach it. Not given:\n"
                    "where memory needs it");
  group->add_option("--shared-decode", shared_decode_,
                    "on: the projections of a layer are decoded from NF4 into the same memory, one after the other, and on matrix\n"
                    "units the layers' adapters are packed into the same; auto: where memory needs it")
      ->check(CLI::IsMember({"auto", "on", "off"}))->capture_default_str();
  residency.add_to(*group, ResidencyFlags::Cached::offered);
  group->add_option("--mlp-chunk", options.mlp_chunk,
                    "Rows of a batch whose MLP is computed at a time, a multiple of 64, where gradient checkpointing computes it again.\n"
                    "0: all rows, and fewer where memory needs it")
      ->capture_default_str();
  group->add_option("--head-chunk", options.head_chunk, "Rows of logits at a time; 0: 128 to 320 MiB of them, by the memory")->capture_default_str();
}

// Each once, as repeated keys of a configuration file and the command line's would otherwise add up.
void TrainFlags::finish_patterns() {
  LoraConfig& lora = options.lora;
  lora.rank_pattern.clear(), lora.alpha_pattern.clear(), lora.layers_to_transform.clear();
  for (const std::string& text : rank_pattern_) {
    const auto [key, rank] = split_pattern<std::uint32_t>("--rank-pattern", text);
    check<UsageError>(rank >= 1 && rank <= 256, "--rank-pattern", "The rank of \"{}\" is {}; give 1 to 256.", key, rank);
    lora.rank_pattern.emplace_back(key, rank);
  }
  for (const std::string& text : alpha_pattern_) {
    const auto [key, alpha] = split_pattern<double>("--alpha-pattern", text);
    check<UsageError>(alpha >= 0 && alpha <= 1e9, "--alpha-pattern", "The alpha of \"{}\" is {}; give 0 to 1e9.", key, alpha);
    lora.alpha_pattern.emplace_back(key, alpha);
  }
  for (const std::string& text : layers_to_transform_) add_layers(text, lora.layers_to_transform);
  std::sort(lora.layers_to_transform.begin(), lora.layers_to_transform.end());
  const auto end = std::unique(lora.layers_to_transform.begin(), lora.layers_to_transform.end());
  lora.layers_to_transform.erase(end, lora.layers_to_transform.end());
}

void TrainFlags::finish_start() {
  const std::string& start = init_lora_weights_;
  if (start == "true" || start == "gaussian") {
    options.gaussian_init = start == "gaussian";
    return;
  }
  check<UsageError>(start.starts_with("pissa") || start == "loftq", "--init-lora-weights",
                    "\"{}\" is no start of an adapter; give true or gaussian (pissa, pissa_niter_N and loftq change the base, which `nibble quantize "
                    "--init-lora-weights` does).",
                    start);
  const std::string_view folder = folder_of(lora_start_of(start).kind);
  fail<UsageError>("--init-lora-weights",
                   "The start {} changes the base. Make both once with `nibble quantize --init-lora-weights {} --output BASE`, then train with "
                   "--model BASE --init-adapter BASE/{}.",
                   start, start, folder);
}

void TrainFlags::check_init_adapter() const {
  check<UsageError>(!options.gaussian_init, "--init-lora-weights",
                    "\"{}\" is the start of a new adapter, but --init-adapter brings one; leave one of the two out.", init_lora_weights_);
  // "auto" leaves the targets to what there is.
  const auto said = [&](const std::string& option) { return given(option) && (option != "target-modules" || !options.usual_targets); };
  check_same_adapter(options.lora, read_lora_config(options.init_adapter), read_model_config(options.model).num_layers, said);
}

void TrainFlags::apply_recipe(CLI::App& verb) {
  const AdamWOptions values = adamw_recipe(recipe_);
  const auto give = [&](const std::string& name, double& target, double value) {
    CLI::Option* option = verb.get_option(name);
    if (!option->empty()) return;
    target = value;
    option->add_result(fmt::format("{}", value));
  };
  give("--adam-beta1", options.adamw.adam_beta1, values.adam_beta1);
  give("--adam-beta2", options.adamw.adam_beta2, values.adam_beta2);
  give("--adam-epsilon", options.adamw.adam_epsilon, values.adam_epsilon);
  give("--weight-decay", options.adamw.weight_decay, values.weight_decay);
}

void TrainFlags::finish() {
  finish_patterns();
  lora_.finish(options.lora);
  options.usual_targets = lora_.usual();
  finish_start();
  for (const LrScheduler kind : {LrScheduler::constant, LrScheduler::linear, LrScheduler::cosine}) {
    if (lr_scheduler_ == nibble::name_of(kind)) options.lr_scheduler = kind;
  }
  options.loss.kind = train_loss_of(loss_);
  options.shuffle = shuffle_ == "on";
  options.train_on = data::train_on_of(train_on_);
  options.overflow = data::overflow_of(overflow_);
  options.data = rows_.files();
  options.valid = data::DataFiles::parse(valid_);
  options.map = rows_.columns();
  if (form_ != "auto") options.form = data::row_form_of(form_);
  options.gradient_checkpointing = checkpointing_of(gradient_checkpointing_);
  if (shared_decode_ != "auto") options.shared_decode = shared_decode_ == "on";
  if (!vram_limit_.empty()) options.vram_limit = memory_limit_of(vram_limit_);
  if (!ram_limit_.empty()) options.ram_limit = memory_limit_of(ram_limit_, "--ram-limit");
  options.lora_moments = moment_kind_of(lora_moments_);
  if (lora_state_ != "auto") options.lora_state = lora_state_ == "host" ? MemoryPlace::host : MemoryPlace::device;
  options.head_moments = moment_kind_of(head_moments_);
  if (head_state_ != "auto") options.head_state = head_state_ == "host" ? MemoryPlace::host : MemoryPlace::device;
  options.residency = residency.choice();
  options.stream_layers = residency.layers;
  options.stream = residency.stream();
  if (eval_every_ >= 0) options.eval_every = static_cast<std::uint64_t>(eval_every_);
  if (save_every_ >= 0) options.save_every = static_cast<std::uint64_t>(save_every_);
  if (!options.init_adapter.empty()) check_init_adapter();
}

}  // namespace nibble::cli
