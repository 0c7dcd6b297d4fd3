#include "nibble/train/checkpoint.h"

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/io/atomic.h"
#include "nibble/io/safetensors.h"

#include <algorithm>
#include <charconv>
#include <map>

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view folder_prefix = "checkpoint-";

// Moments and what is kept of them in optimizer.safetensors: those of the adapter and of a head that is trained.
struct Kept {
  Moments* moments;
  std::vector<MomentPart> parts;
};

std::vector<Kept> kept_of(const ModelState& model_state) {
  LoraMirror& lora = model_state.lora_mirror();
  std::vector<Kept> all = {{.moments = &lora.moments(), .parts = lora.moment_parts()}};
  if (TrainedHead* head = model_state.trained_head()) all.push_back({.moments = &head->moments(), .parts = {head->moment_part()}});
  return all;
}

void save_optimizer(const fs::path& path, const ModelState& model_state) {
  std::map<std::string, std::pair<const Moments*, MomentTensor>> tensors;
  std::vector<TensorSpec> specs;
  for (const Kept& kept : kept_of(model_state)) {
    for (const MomentTensor& tensor : kept.moments->tensors(kept.parts)) {
      specs.push_back(tensor.spec());
      tensors[tensor.name] = {kept.moments, tensor};
    }
  }
  std::map<std::string, std::vector<float>> of_tokens;
  if (const TrainedTokens* trained = model_state.trained_tokens()) {
    for (const auto& [name, moment] : trained->moments()) {
      const auto& numbers = of_tokens[name] = model_state.device().read<float>(moment);
      specs.push_back({.name = name, .dtype = DType::f32, .shape = {static_cast<std::int64_t>(numbers.size())}});
    }
  }
  SafetensorsWriter writer(path, specs);
  for (const TensorSpec& spec : writer.tensors()) {
    if (const auto found = of_tokens.find(spec.name); found != of_tokens.end()) {
      writer.append(std::as_bytes(std::span(found->second)));
      continue;
    }
    const auto& [moments, tensor] = tensors.at(spec.name);
    moments->read(tensor, [&](std::span<const std::byte> piece) { writer.append(piece); });
  }
  writer.finish();
}

std::optional<std::uint64_t> step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (!name.starts_with(folder_prefix)) return {};
  std::uint64_t step = 0;
  const char* end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data() + folder_prefix.size(), end, step);
  if (parsed.ec != std::errc() || parsed.ptr != end) return {};
  return step;
}

// By step, the oldest first.
std::map<std::uint64_t, fs::path> checkpoints_of(const fs::path& output) {
  std::map<std::uint64_t, fs::path> found;
  std::error_code error;
  for (auto it = fs::directory_iterator(output, error); !error && it != fs::directory_iterator(); it.increment(error)) {
    if (const auto step = step_of(it->path())) found[*step] = it->path();
  }
  return found;
}

}  // namespace

Json trainer_state(const TrainState& state, const fs::path& output, const Json& more) {
  Json json = {{"global_step", state.step},
               {"max_steps", state.total_steps},
               {"epoch", state.epoch},
               {"num_input_tokens_seen", state.tokens},
               {"best_metric", nullptr},
               {"best_model_checkpoint", nullptr},
               {"best_global_step", state.best_step},
               {"is_local_process_zero", true},
               {"is_world_process_zero", true},
               {"nibble",
                {{"cursor", data::to_json(state.cursor)},
                 {"evaluations_without_gain", state.evaluations_without_gain},
                 {"evaluated_step", state.evaluated_step ? Json(*state.evaluated_step) : Json()},
                 {"fingerprint", state.fingerprint}}}};
  if (state.best_eval_loss) {
    json["best_metric"] = *state.best_eval_loss;
    json["best_model_checkpoint"] = output.string();
  }
  json.update(more);
  return json;
}

void save_checkpoint(const fs::path& output, const TrainState& state, const ModelState& model_state,
                     const LoraAdapter& adapter, const Json& more, std::uint32_t keep) {
  AtomicFolder folder(output / fmt::format("{}{}", folder_prefix, state.step));
  save_lora_adapter(folder.path(), adapter);
  save_optimizer(folder.path() / "optimizer.safetensors", model_state);
  write_file_atomically(folder.path() / "trainer_state.json", write_json(trainer_state(state, output, more)) + "\n");
  folder.commit();
  auto all = checkpoints_of(output);
  // Later ones are left over from another run, or one that was started again from an earlier step, and take no place of this run's.
  all.erase(all.upper_bound(state.step), all.end());
  while (all.size() > std::max(1u, keep)) {
    std::error_code error;
    fs::remove_all(all.begin()->second, error);
    all.erase(all.begin());
  }
}

TrainState load_train_state(const fs::path& checkpoint) {
  const fs::path path = checkpoint / "trainer_state.json";
  const Json json = read_json_file(path);
  const JsonObject object(json, path.string());
  const auto own = object.object("nibble");
  check<DataError>(own.has_value(), path.string(), "This is no checkpoint of nibble: it has no key \"nibble\".");
  TrainState state;
  state.step = static_cast<std::uint64_t>(object.integer("global_step", {.min = 0}));
  state.total_steps = static_cast<std::uint64_t>(object.integer("max_steps", {.min = 0}));
  state.epoch = object.number("epoch", {.min = 0, .max = 1e18});
  state.tokens = static_cast<std::uint64_t>(object.integer("num_input_tokens_seen", {.min = 0}));
  state.best_step = static_cast<std::uint64_t>(object.integer("best_global_step", {.min = 0}, 0));
  if (object.has("best_metric")) state.best_eval_loss = object.number("best_metric", {.min = 0, .max = 1e18});
  state.evaluations_without_gain =
      static_cast<std::uint32_t>(own->integer("evaluations_without_gain", {.min = 0, .max = UINT32_MAX}));
  if (own->has("evaluated_step")) {
    state.evaluated_step = static_cast<std::uint64_t>(own->integer("evaluated_step", {.min = 0}));
  }
  check<DataError>(own->has("cursor") && own->has("fingerprint"), path.string(), "The cursor or the fingerprint is missing.");
  state.cursor = data::cursor_from_json(own->json()["cursor"]);
  state.fingerprint = own->json()["fingerprint"];
  return state;
}

void load_optimizer(const fs::path& checkpoint, ModelState& model_state) {
  const SafetensorsFile file(checkpoint / "optimizer.safetensors");
  for (const Kept& kept : kept_of(model_state)) kept.moments->load(file, kept.parts);
  if (const TrainedTokens* trained = model_state.trained_tokens()) {
    for (const auto& [name, moment] : trained->moments()) {
      const auto values = file.read_as_f32(name);
      check<DataError>(values.size() == moment.size(), file.path().string(), "The moment {} has {} values; the rows of tokens have {}.", name,
                       values.size(), moment.size());
      model_state.device().write(moment, std::as_bytes(std::span(values)));
    }
  }
}

std::optional<fs::path> newest_checkpoint(const fs::path& output) {
  const auto all = checkpoints_of(output);
  if (all.empty()) return {};
  return all.rbegin()->second;
}

namespace {

// What is another in this run, " KEY was A and is B;" for each.
std::string differences_of(const Json& saved, const Json& now) {
  std::string differences;
  for (const auto& [key, value] : now.items()) {
    if (!saved.contains(key)) continue;  // saved before there was such a key
    if (saved[key] != value) differences += fmt::format(" {} was {} and is {};", key, saved[key].dump(), value.dump());
  }
  return differences;
}

}  // namespace

std::optional<fs::path> newest_checkpoint_of(const fs::path& output, const Json& fingerprint) {
  const auto all = checkpoints_of(output);
  for (auto it = all.rbegin(); it != all.rend(); ++it) {
    const std::string name = it->second.filename().string();
    try {
      if (!differences_of(load_train_state(it->second).fingerprint, fingerprint).empty()) continue;
    } catch (const DataError& error) {
      const auto before = std::next(it);
      if (before == all.rend()) throw;
      fail<DataError>("--resume", "{} Before it there is {}, which --resume takes by name.", error.what(), before->second.string());
    }
    if (it != all.rbegin()) {
      log_warning(fmt::format("{} is of another run; --resume auto goes on from {}. Remove what is not needed.", all.rbegin()->second.string(), name));
    }
    return it->second;
  }
  return newest_checkpoint(output);
}

void check_fingerprint(const Json& saved, const Json& now, const fs::path& checkpoint) {
  const std::string differences = differences_of(saved, now);
  check<UsageError>(differences.empty(), checkpoint.string(),
                    "The run that is resumed was another one:{} give the same, or start anew without --resume.", differences);
}

}  // namespace nibble
