#include "nibble/base/error.h"
#include "nibble/cli/command.h"
#include "nibble/cli/device_flags.h"
#include "nibble/cli/residency_flags.h"
#include "nibble/io/json.h"
#include "nibble/model/golden.h"
#include "nibble/model/preference_parity.h"

#include <fmt/format.h>

#include <filesystem>

namespace nibble::cli {
namespace {

struct VerifyFlags {
  std::string model, adapter, golden;
  DeviceFlags device;
  ResidencyFlags residency;
  bool gradient_checkpointing = false;
  std::uint32_t mlp_chunk = 0, head_chunk = 0;
  bool json = false;
};

Json to_json(const std::vector<GradientParity>& parities) {
  Json gradients = Json::array();
  for (const auto& gradient : parities) {
    gradients.push_back({{"name", gradient.name}, {"error", gradient.error}, {"cosine", gradient.cosine}});
  }
  return gradients;
}

Json to_json(const ParityReport& report, const ParityBars& bars, const std::string& adapter, ProductPath path) {
  return {{"adapter", adapter},
          {"compute", name_of(path)},
          {"passed", report.passes(bars)},
          {"loss", report.loss},
          {"reference_loss", report.reference_loss},
          {"loss_error", report.loss_error},
          {"logits_cosine", report.logits_cosine},
          {"logits_error", report.logits_error},
          {"worst_gradient_error", report.worst_gradient().error},
          {"worst_gradient_cosine", report.worst_direction().cosine},
          {"nf4_codes", report.nf4_codes},
          {"nf4_differences", report.nf4_differences},
          {"bars",
           {{"loss_error", bars.loss_error},
            {"logits_cosine", bars.logits_cosine},
            {"gradient_error", bars.gradient_error},
            {"gradient_cosine", bars.gradient_cosine}}},
          {"gradients", to_json(report.gradients)}};
}

Json to_json(const PreferenceParity& report, const ParityBars& bars, const std::string& adapter, ProductPath path) {
  const auto loss = [](const ParityReport& r) -> Json {
    return {{"loss", r.loss}, {"reference_loss", r.reference_loss}, {"loss_error", r.loss_error},
            {"worst_gradient_error", r.worst_gradient().error}, {"worst_gradient_cosine", r.worst_direction().cosine},
            {"gradients", to_json(r.gradients)}};
  };
  return {{"adapter", adapter},
          {"compute", name_of(path)},
          {"passed", report.passes(bars)},
          {"logps_error", report.logps_error},
          {"dpo", loss(report.dpo)},
          {"orpo", loss(report.orpo)},
          {"bars",
           {{"loss_error", bars.loss_error},
            {"dpo_loss_error", bars.dpo_loss_error},
            {"gradient_error", bars.gradient_error},
            {"gradient_cosine", bars.gradient_cosine}}}};
}

void print_row(std::string_view what, const std::string& value, const std::string& bar, bool good, std::string_view where) {
  fmt::print("{:<28} {:>12}   {:>10}   {:<4} {}\n", what, value, bar, good ? "ok" : "FAIL", where);
}

void print_head() { fmt::print("{:<28} {:>12}   {:>10}\n", "", "found", "allowed"); }

void print_loss(std::string_view name, const ParityReport& r, double allowed) {
  print_row(fmt::format("{}, relative error", name), fmt::format("{:.2e}", r.loss_error), fmt::format("{:.0e}", allowed),
            r.loss_error <= allowed, fmt::format("{:.7f} against {:.7f}", r.loss, r.reference_loss));
}

void print_gradients(const ParityReport& r, const ParityBars& bars) {
  print_row("worst gradient, error", fmt::format("{:.2e}", r.worst_gradient().error),
            fmt::format("{:.0e}", bars.gradient_error), r.worst_gradient().error <= bars.gradient_error,
            r.worst_gradient().name);
  print_row("worst gradient, 1 - cosine", fmt::format("{:.2e}", 1 - r.worst_direction().cosine),
            fmt::format("{:.0e}", 1 - bars.gradient_cosine), r.worst_direction().cosine >= bars.gradient_cosine,
            r.worst_direction().name);
}

void print_table(const ParityReport& r, const ParityBars& bars) {
  print_head();
  print_loss("loss", r, bars.loss_error);
  print_row("logits, 1 - cosine", fmt::format("{:.2e}", 1 - r.logits_cosine), fmt::format("{:.0e}", 1 - bars.logits_cosine),
            r.logits_cosine >= bars.logits_cosine, "");
  print_gradients(r, bars);
  if (r.nf4_codes) {
    print_row("NF4 codes that differ", fmt::format("{}", r.nf4_differences), "0", r.nf4_differences == 0,
              fmt::format("of {}", r.nf4_codes));
  }
  fmt::print("{} gradients compared.\n", r.gradients.size());
}

void print_table(const PreferenceParity& r, const ParityBars& bars) {
  print_head();
  print_row("log-probabilities", fmt::format("{:.2e}", r.logps_error), fmt::format("{:.0e}", bars.loss_error),
            r.logps_error <= bars.loss_error, "with the adapter and without");
  print_loss("DPO's loss", r.dpo, bars.dpo_loss_error);
  print_gradients(r.dpo, bars);
  print_loss("ORPO's loss", r.orpo, bars.loss_error);
  print_gradients(r.orpo, bars);
  fmt::print("{} gradients compared.\n", r.dpo.gradients.size() + r.orpo.gradients.size());
}

// Prints the report and says whether it passes.
template <typename Report>
bool finish(const Report& report, const VerifyFlags& flags, const gpu::AdapterInfo& info, ProductPath path) {
  const ParityBars bars = parity_bars(path);
  if (flags.json) {
    fmt::print("{}\n", write_json(to_json(report, bars, info.name, path)));
  } else {
    fmt::print("{}\n", describe(info, path));
    print_table(report, bars);
  }
  return report.passes(bars);
}

int run(const VerifyFlags& flags) {
  const SafetensorsFile golden(flags.golden);
  gpu::Device device = flags.device.open();
  const ProductPath path = flags.device.path(device.info());
  const std::vector<Residency> residency = flags.residency.of(read_model_config(flags.model).num_layers);
  const ModelState state = ModelState::load(device, flags.model, {.path = path, .adapter = flags.adapter, .residency = residency,
                                                                  .stream = flags.residency.stream()});
  const std::uint32_t tokens = golden_tokens(golden);
  const Activations activations = flags.gradient_checkpointing ? Activations::recompute : Activations::keep;
  Model model(state, {.residency = residency, .activations = {activations}, .mlp_chunk = flags.mlp_chunk, .max_tokens = tokens,
                      .max_labels = tokens, .head_chunk = flags.head_chunk});
  const bool passes = holds_preferences(golden)
                          ? finish(compare_preferences_with_golden(model, golden), flags, device.info(), path)
                          : finish(compare_with_golden(model, state, golden), flags, device.info(), path);
  print_profile(device);
  return passes ? exit_done : exit_data;
}

}  // namespace

void add_verify(CLI::App& app, Action& action) {
  auto flags = std::make_shared<VerifyFlags>();
  CLI::App* verb = app.add_subcommand(
      "verify", "Compares loss, logits and every gradient on this GPU with a reference from PyTorch.\n"
                "A golden file holds input_ids, labels, attention_mask, logits0, loss and grad.*, or the same of\n"
                "pairs of answers; see tests/golden/README.md.\n"
                "The exit code is not 0 where a result lies beyond what docs/numerics.md allows.");
  verb->add_option("--model", flags->model, "Model folder (config.json, safetensors) or GGUF file")->required();
  verb->add_option("--adapter", flags->adapter, "PEFT adapter folder that the golden file was made with")->required();
  verb->add_option("--golden", flags->golden, "Golden file (safetensors)")->required();
  flags->device.add_to(*verb, DeviceFlags::AdapterOption::names_lora);
  verb->add_flag("--gradient-checkpointing", flags->gradient_checkpointing, "Check the path that computes activations again");
  verb->add_option("--mlp-chunk", flags->mlp_chunk, "Rows whose MLP is computed at a time, with --gradient-checkpointing; 0: all");
  verb->add_option("--head-chunk", flags->head_chunk, "Rows of logits at a time");
  flags->residency.add_to(*verb, ResidencyFlags::Cached::offered);
  verb->add_flag("--json", flags->json, "Print the report as JSON");
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
