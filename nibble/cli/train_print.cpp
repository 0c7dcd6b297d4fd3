#include "nibble/cli/train_print.h"

#include "nibble/cli/device_flags.h"

#include <fmt/format.h>

#include <cmath>

namespace nibble::cli {
namespace {

std::string targets_text(const LoraConfig& lora) {
  std::string where;
  if (!lora.layers_to_transform.empty()) where = fmt::format(" of layers {}", fmt::join(lora.layers_to_transform, ", "));
  if (lora.target_modules.size() == all_projections.size()) return "all linear layers" + where;
  std::string text;
  for (const Projection p : lora.target_modules) text += fmt::format("{}{}", text.empty() ? "" : ", ", nibble::name_of(p));
  return text + where;
}

std::string alpha_text(const LoraConfig& lora) {
  if (lora.alpha_pattern.empty()) return fmt::format("{}", lora.lora_alpha);
  return fmt::format("{}, or by {} patterns", lora.lora_alpha, lora.alpha_pattern.size());
}

std::string data_text(const RunPlan& plan, const TrainOptions& options) {
  std::string text =
      fmt::format("{} ({}): {} rows, {} tokens, {} trained", options.data.text(), plan.forms,
                  grouped(plan.train_examples), grouped(plan.train_tokens), grouped(plan.trained_tokens));
  if (plan.counts.bad_rows > 0) text += fmt::format("; {} bad rows left out", grouped(plan.counts.bad_rows));
  if (plan.counts.over_long_rows > 0) {
    text += fmt::format("; {} rows over {} tokens: {}", grouped(plan.counts.over_long_rows), options.max_length,
                        data::name_of(options.overflow));
  }
  return text;
}

// How training draws from files with weights, a line each.
void print_draws(const RunPlan& plan, Progress& progress) {
  for (std::size_t i = 0; i < plan.drawn.size(); ++i) {
    const auto& part = plan.files[i];
    const double times = static_cast<double>(plan.drawn[i]) / static_cast<double>(plan.train_rows[i]);
    progress.say(fmt::format("         {} of an epoch's {} rows from {}, which has {}: each {:.2f} times", grouped(plan.drawn[i]),
                             grouped(plan.train_examples), part.name, grouped(plan.train_rows[i]), times));
  }
}

std::string head_text(const RunPlan& plan) {
  const std::uint64_t parameters = std::uint64_t{plan.config.vocab_size} * plan.config.hidden_size;
  return fmt::format("{} of them in the head, which is trained too{}; moments in {}, kept {}", grouped(parameters),
                     plan.config.tie_word_embeddings ? ": it is untied from the embedding, which stays as it is" : "",
                     plan.head->moments == HeadMoments::f32 ? "f32" : "8 bits",
                     plan.head->place == MemoryPlace::device ? "on the device" : "in host memory");
}

std::string memory_text(const MemoryPlan& m) {
  std::string text = fmt::format("{}: weights {} (NF4, embedding) + decoded {}, adapter {}, activations {}, scratch {}, head {}",
                                 human_bytes(m.total()), human_bytes(m.frozen_weights), human_bytes(m.decoded_weights),
                                 human_bytes(m.adapters), human_bytes(m.activations), human_bytes(m.scratch), human_bytes(m.head));
  if (m.trained_head > 0) text += fmt::format(", its training {}", human_bytes(m.trained_head));
  if (m.host_weights > 0) text += fmt::format("; and {} of host memory for weights", human_bytes(m.host_weights));
  if (m.host_head > 0) text += fmt::format("; and {} of host memory for the head", human_bytes(m.host_head));
  return text;
}

}  // namespace

void print_plan(const RunPlan& plan, const TrainOptions& options, Progress& progress) {
  const ModelConfig& c = plan.config;
  progress.say(fmt::format("GPU      {}", describe(plan.gpu, plan.path)));
  progress.say(fmt::format("Model    {}: {}, {} layers, hidden {}, vocabulary {}", options.model.string(), c.model_type,
                           c.num_layers, c.hidden_size, grouped(c.vocab_size)));
  progress.say(fmt::format("Adapter  rank {}, alpha {}{}, {}: {} trainable parameters", ranks_text(plan.lora), alpha_text(plan.lora),
                           plan.lora.use_rslora ? " (rsLoRA)" : "", targets_text(plan.lora), grouped(plan.trainable_parameters)));
  if (plan.head) progress.say("Head     " + head_text(plan));
  progress.say(fmt::format("Data     {}", data_text(plan, options)));
  print_draws(plan, progress);
  if (plan.valid_examples > 0) progress.say(fmt::format("Valid    {} rows", grouped(plan.valid_examples)));
  if (options.loss.takes_pairs()) {
    progress.say(fmt::format("Loss     {}, beta {}{}", nibble::name_of(options.loss.kind), options.loss.beta,
                             options.loss.kind == TrainLoss::dpo ? "; the reference is the base alone" : ""));
  }
  progress.say(fmt::format("Batch    {} x {} {}; the largest has {} tokens, {} trained{}", options.gradient_accumulation,
                           options.batch_size, options.packing ? fmt::format("packed sequences of {}", options.max_length) : "rows",
                           grouped(plan.room.tokens), grouped(plan.room.labels),
                           plan.gradient_checkpointing ? "; activations are computed again (gradient checkpointing)" : ""));
  progress.say(fmt::format("Memory   {}", memory_text(plan.memory)));
  progress.say(fmt::format("Steps    {}{}, warm-up {}, {} to {:.3g}; evaluate every {}, save every {}", grouped(plan.total_steps),
                           plan.first_step > 0 ? fmt::format(" ({} done)", grouped(plan.first_step)) : "", plan.warmup_steps,
                           nibble::name_of(options.lr_scheduler), options.learning_rate,
                           plan.valid_examples > 0 ? grouped(plan.eval_every) : "-", grouped(plan.save_every)));
}

void print_result(const TrainResult& result, const TrainOptions& options, Progress& progress) {
  const std::string output = options.output.string();
  if (result.best_eval_loss) {
    const std::string perplexity =
        options.loss.takes_pairs() ? "" : fmt::format(" (perplexity {:.2f})", std::exp(*result.best_eval_loss));
    progress.say(fmt::format("Best validation loss {:.4f}{} at step {}.", *result.best_eval_loss, perplexity, result.best_step));
  } else {
    progress.say(fmt::format("Last loss {:.4f}.", result.last_loss));
  }
  progress.say(fmt::format("Memory: {} at the peak, {} planned.", human_bytes(result.peak_bytes),
                           human_bytes(result.planned.total())));
  progress.say(fmt::format("The adapter is in {} (PEFT); ask it with: nibble generate --model MODEL --adapter {} --prompt TEXT",
                           output, output));
}

}  // namespace nibble::cli
