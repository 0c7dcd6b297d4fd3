#include "nibble/cli/train_print.h"

#include "nibble/cli/device_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace nibble::cli {
namespace {

std::string kind_text(const LoraConfig& lora) {
  if (lora.use_dora) return lora.use_rslora ? " (DoRA, rsLoRA)" : " (DoRA)";
  return lora.use_rslora ? " (rsLoRA)" : "";
}

std::string targets_text(const LoraConfig& lora) {
  std::string where;
  if (!lora.layers_to_transform.empty()) where = fmt::format(" of layers {}", fmt::join(lora.layers_to_transform, ", "));
  if (!lora.target_pattern.empty()) return lora.target_pattern;
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

std::string moments_text(MomentKind kind) { return kind == MomentKind::f32 ? "moments in f32" : "moments in 8 bits"; }

std::string kept_text(MomentKind kind, MemoryPlace place) {
  return moments_text(kind) + (place == MemoryPlace::device ? ", kept on the device" : ", kept in host memory");
}

std::string head_text(const RunPlan& plan) {
  const std::uint64_t parameters = std::uint64_t{plan.config.vocab_size} * plan.config.hidden_size;
  return fmt::format("{} of them in the head, which is trained too{}; {}", grouped(parameters),
                     plan.config.tie_word_embeddings ? ": it is untied from the embedding, which stays as it is" : "",
                     kept_text(plan.head->moments, plan.head->place));
}

std::string tokens_text(const RunPlan& plan) {
  const auto& embedding = plan.lora.trained_tokens;
  const auto& head = plan.lora.trained_head_tokens;
  std::string text = fmt::format("{} trained in the embedding{}", grouped(embedding.size()),
                                 plan.config.tie_word_embeddings ? ", to which the head is tied" : "");
  if (!head.empty()) text += fmt::format(", {} in the head", grouped(head.size()));
  if (head.empty() && !plan.config.tie_word_embeddings) text += "; the head's rows stay (--train-tokens-head)";
  for (std::size_t i = 0; i < plan.tokens.added.size(); ++i) {
    const text::NewToken& token = plan.tokens.added[i];
    text += fmt::format("{}{} = {}", i == 0 ? "; new: " : ", ", token.content, token.id);
  }
  return text;
}

std::string memory_text(const RunPlan& plan) {
  const MemoryPlan& m = plan.memory;
  std::string text = fmt::format("{}{}: weights {} (NF4, embedding) + decoded {}, adapter {}, layer inputs {}, activations {}, scratch {}, head {}",
                                 human_bytes(m.total()), budget_text(plan.budget), human_bytes(m.frozen_weights), human_bytes(m.decoded_weights),
                                 human_bytes(m.adapters), human_bytes(m.layer_inputs), human_bytes(m.activations),
                                 human_bytes(m.scratch + m.workspace), human_bytes(m.head));
  if (m.trained_head > 0) text += fmt::format(", its training {}", human_bytes(m.trained_head));
  const std::uint64_t host = m.host_weights + m.host_head + m.host_moments + m.host_inputs;
  if (host > 0) text += fmt::format("; and {} of host memory", human_bytes(host));
  return text;
}

void print_ram(const RunPlan& plan, Progress& progress) {
  const MemoryPlan& m = plan.memory;
  std::string text = fmt::format("RAM      {}{}: on the way to and from the GPU {}", human_bytes(m.host_total()),
                                 plan.budget.ram_promised ? fmt::format(" of {} that --ram-limit allows", human_bytes(plan.budget.ram)) : "",
                                 human_bytes(m.host_staging));
  if (m.host_weights > 0) text += ", weights " + human_bytes(m.host_weights);
  if (m.disk_weights > 0) text += fmt::format(" (of the layers on disk {} at a time)", DiskLayers::rooms_of(count_of(plan.model.residency, plan.config.num_layers, Residency::streamed)));
  if (m.host_head > 0) text += ", the trained head " + human_bytes(m.host_head);
  if (m.host_moments > 0) text += ", the adapter's moments " + human_bytes(m.host_moments);
  if (m.host_inputs > 0) text += ", inputs of layers " + human_bytes(m.host_inputs);
  progress.say(text);
}

// The bytes of each class with what was chosen for it.
void print_memory(const RunPlan& plan, Progress& progress) {
  const MemoryPlan& m = plan.memory;
  const auto row = [&](std::string_view what, std::uint64_t bytes, const std::string& choice) {
    if (bytes > 0) progress.say(fmt::format("  {:<16} {:>11}  {}", what, human_bytes(bytes), choice));
  };
  progress.say(fmt::format("Memory   {} on the GPU{}", human_bytes(m.total()), budget_text(plan.budget)));
  const std::uint32_t streamed = count_of(plan.model.residency, plan.config.num_layers, Residency::streamed);
  const std::string unusual = describe_tables(plan.model.stream, plan.config.tie_word_embeddings);
  const std::string tables = unusual.empty() ? ", embedding and head" : unusual;
  row("frozen weights", m.frozen_weights,
      streamed > 0 ? fmt::format("NF4 of {} layers, {} others are streamed{}; norms{}", plan.config.num_layers - streamed, streamed,
                                 plan.memory.disk_weights > 0 ? " from a disk" : "", tables)
                   : "NF4, norms" + tables);
  if (plan.model.stream.double_quant) progress.say(fmt::format("  {:<16} {:>11}  scales of NF4 are kept in 8 bits, and those of a layer decoded", "", ""));
  row("decoded weights", m.decoded_weights,
      plan.model.one_decoded_room ? "one room, in which each projection takes the place of the last" : "a room for each projection");
  row("adapter", m.adapters,
      plan.moments.place == MemoryPlace::host ? fmt::format("parameters, gradients; {}, which lie in host memory", moments_text(plan.moments.kind))
                                              : "parameters, gradients, " + moments_text(plan.moments.kind));
  row("layer inputs", m.layer_inputs,
      plan.model.offloaded_inputs > 0 ? fmt::format("and the gradient of one; those of {} layers lie in host memory", plan.model.offloaded_inputs)
                                      : "and the gradient of one");
  row("activations", m.activations, fmt::format("of {} layers {}", plan.config.num_layers, describe(plan.model.activations, plan.config.num_layers)));
  row("scratch", m.scratch, plan.model.mlp_chunk > 0 ? fmt::format("of the layer that computes, its MLP {} rows at a time", plan.model.mlp_chunk)
                                                     : "of the layer that computes");
  row("head", m.head, fmt::format("logits of {} rows at a time", plan.model.head_chunk));
  row("trained head", m.trained_head, plan.head && plan.head->place == MemoryPlace::host ? "gradient and copy; the rest in host memory" : "values, gradient, moments");
  row("workspace", m.workspace, "batches, tables, statistics");
  print_ram(plan, progress);
}

void print_disk(const RunPlan& plan, const TrainOptions& options, Progress& progress) {
  const auto [adapter, checkpoint] = saved_bytes(plan);
  const std::uint64_t saves = plan.save_every > 0 ? (plan.total_steps + plan.save_every - 1) / plan.save_every : 1;
  const std::uint64_t kept = std::min<std::uint64_t>(options.keep_checkpoints, std::max<std::uint64_t>(1, saves));
  const std::uint64_t scratch = plan.memory.disk_weights;
  progress.say(fmt::format("Disk     {}: {}the adapter {}, {} checkpoints of {}", human_bytes(scratch + adapter + kept * checkpoint),
                           scratch > 0 ? scratch_text(plan.memory, plan.model) + ", " : "", human_bytes(adapter), kept, human_bytes(checkpoint)));
}

// Tokens of a step as they are on average.
double tokens_of_step(const RunPlan& plan, const TrainOptions& options) {
  const double all = static_cast<double>(plan.train_tokens), rows = 1.0 * options.batch_size * options.gradient_accumulation;
  const double part = options.packing ? rows * options.max_length : all * rows / static_cast<double>(plan.train_examples);
  return std::min(all, part);
}

void print_time(const RunPlan& plan, const TrainOptions& options, Progress& progress) {
  const auto steps = static_cast<double>(plan.total_steps - plan.first_step);
  const double tokens = tokens_of_step(plan, options), seconds = plan.pass_seconds * tokens / plan.room.tokens;
  const double extra = 100 * plan.extra_seconds / plan.pass_seconds;
  progress.say(fmt::format("Time     about {} without evaluations: {} steps of {} tokens, {} in all, at {:.3g} s{}{}",
                           human_seconds(seconds * steps), grouped(plan.total_steps - plan.first_step),
                           grouped(static_cast<std::uint64_t>(tokens)), grouped(static_cast<std::uint64_t>(tokens * steps)), seconds,
                           plan.measured ? " by a measurement on this GPU" : "",
                           extra >= 0.5 ? fmt::format("; saving memory costs {:.0f}% of it", extra) : ""));
}

}  // namespace

std::string scratch_text(const MemoryPlan& memory, const ModelOptions& model) {
  if (memory.disk_weights == 0) return "";
  return fmt::format("{} of streamed layers in {}, for as long as it runs", human_bytes(memory.disk_weights), stream_folder(model.stream).string());
}

std::string budget_text(const MemoryBudget& budget) {
  if (budget.bytes == 0) return "";
  return budget.promised ? fmt::format(", of {} that --vram-limit allows", human_bytes(budget.bytes + budget.driver))
                         : fmt::format(", of {} that the GPU has for it", human_bytes(budget.bytes));
}

void print_plan(const RunPlan& plan, const TrainOptions& options, Progress& progress) {
  const ModelConfig& c = plan.config;
  progress.say(fmt::format("GPU      {}", describe(plan.gpu, plan.path)));
  progress.say(fmt::format("Model    {}: {}, {} layers, hidden {}, vocabulary {}", options.model.string(), c.model_type,
                           c.num_layers, c.hidden_size, grouped(c.vocab_size)));
  const bool plain = plan.moments.kind == MomentKind::f32 && plan.moments.place == MemoryPlace::device;
  progress.say(fmt::format("Adapter  rank {}, alpha {}{}, {}: {} trainable parameters{}", ranks_text(plan.lora), alpha_text(plan.lora),
                           kind_text(plan.lora), targets_text(plan.lora), grouped(plan.trainable_parameters),
                           plain ? "" : "; " + kept_text(plan.moments.kind, plan.moments.place)));
  if (plan.head) progress.say("Head     " + head_text(plan));
  if (plan.lora.trains_tokens()) progress.say("Tokens   " + tokens_text(plan));
  progress.say(fmt::format("Data     {}", data_text(plan, options)));
  print_draws(plan, progress);
  if (plan.valid_examples > 0) progress.say(fmt::format("Valid    {} rows", grouped(plan.valid_examples)));
  if (options.loss.takes_pairs()) {
    progress.say(fmt::format("Loss     {}, beta {}{}", nibble::name_of(options.loss.kind), options.loss.beta,
                             options.loss.kind == TrainLoss::dpo ? "; the reference is the base alone" : ""));
  }
  progress.say(fmt::format("Batch    {} x {} {}; the largest has {} tokens, {} trained", options.gradient_accumulation,
                           options.batch_size, options.packing ? fmt::format("packed sequences of {}", options.max_length) : "rows",
                           grouped(plan.room.tokens), grouped(plan.room.labels)));
  if (options.dry_run || plan.budget.promised || plan.budget.ram_promised) {
    print_memory(plan, progress);
  } else {
    progress.say(fmt::format("Layers   {}", describe(plan.model.activations, c.num_layers)));
    progress.say(fmt::format("Memory   {}", memory_text(plan)));
  }
  if (!options.dry_run && plan.memory.disk_weights > 0) progress.say("Disk     " + scratch_text(plan.memory, plan.model));
  progress.say(fmt::format("Steps    {}{}, warm-up {}, {} to {:.3g}; evaluate every {}, save every {}", grouped(plan.total_steps),
                           plan.first_step > 0 ? fmt::format(" ({} done)", grouped(plan.first_step)) : "", plan.warmup_steps,
                           nibble::name_of(options.lr_scheduler), options.learning_rate,
                           plan.valid_examples > 0 ? grouped(plan.eval_every) : "-", grouped(plan.save_every)));
  if (!options.dry_run) return;
  print_disk(plan, options, progress);
  print_time(plan, options, progress);
}

void print_result(const TrainResult& result, const TrainOptions& options, Progress& progress) {
  const std::string output = options.output.string();
  if (result.best_eval_loss) {
    const std::string perplexity =
        options.loss.takes_pairs() ? "" : fmt::format(" (perplexity {:.2f})", std::exp(*result.best_eval_loss));
    progress.say(fmt::format("Best validation loss {:.4f}{} at step {}.", *result.best_eval_loss, perplexity, result.best_step));
  } else {
    progress.say(result.steps_done == 0 ? std::string("All steps were done already; nothing was trained.")
                                        : fmt::format("Last loss {:.4f}.", result.last_loss));
  }
  progress.say(fmt::format("Memory: {} at the peak, {} planned{}.", human_bytes(result.peak_bytes), human_bytes(result.planned.total()),
                           result.driver_bytes ? "; from the driver " + human_bytes(*result.driver_bytes) : ""));
  progress.say(fmt::format("The adapter is in {} (PEFT); ask it with: nibble generate --model MODEL --adapter {} --prompt TEXT",
                           output, output));
}

}  // namespace nibble::cli
