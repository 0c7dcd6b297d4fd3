#include "nibble/train/run_data.h"

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/train/token_choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble {
namespace {

constexpr std::uint64_t split_stream = 0x73706c69;  // apart from the streams of shuffling and initialising

// Tokens of a row at most; both sides of a preference may be as long as max_length.
std::uint32_t row_limit(const TrainOptions& options) {
  return options.max_length * (options.loss.takes_pairs() ? 2 : 1);
}

data::SamplerOptions sampler_options(const TrainOptions& options, const std::vector<data::Share>& shares) {
  return {.shuffle = options.shuffle, .seed = options.seed, .batch_size = options.batch_size, .packing = options.packing,
          .max_length = row_limit(options), .shares = shares};
}

std::shared_ptr<const data::Dataset> open_files(const RunData& data, const data::DataFiles& files, const TrainOptions& options,
                                                const std::function<void(double)>& progress) {
  // Rows of pairs may have columns of other forms beside them.
  const auto form = options.form || !options.loss.takes_pairs() ? options.form : data::RowForm::preference;
  auto file = std::make_shared<data::Dataset>(
      files, data.tokenizer, data.chat_template ? &*data.chat_template : nullptr,
      data::DatasetOptions{.map = options.map, .form = form, .train_on = options.train_on, .think = options.think, .system = options.system,
                           .overflow = options.overflow, .max_length = options.max_length, .skip_bad_rows = options.skip_bad_rows,
                           .progress = progress});
  const bool pairs = file->form() == data::RowForm::preference;
  check<UsageError>(pairs == options.loss.takes_pairs(), "--loss", "{}: The rows are of the form {}, which the loss {} does "
                    "not take; {}.", files.text(), name_of(file->form()), name_of(options.loss.kind),
                    pairs ? "give --loss dpo or orpo" : "pairs of answers have the form preference");
  return file;
}

ExampleSet whole(std::shared_ptr<const data::Dataset> file) {
  ExampleSet set{.file = std::move(file)};
  set.examples.resize(set.file->size());
  std::iota(set.examples.begin(), set.examples.end(), 0u);
  return set;
}

// Takes a random part of `from`, the same for the same seed; both keep the order of the file.
ExampleSet split_off(ExampleSet& from, double fraction, std::uint64_t seed) {
  const auto count = static_cast<std::size_t>(std::llround(fraction * static_cast<double>(from.examples.size())));
  check<UsageError>(count > 0 && count < from.examples.size(), "--valid-fraction",
                    "{} of {} examples would leave {} to validate on; take at least one and not all.", fraction,
                    from.examples.size(), count);
  std::vector<std::uint32_t> shuffled = from.examples;
  Rng rng(seed, split_stream);
  for (std::size_t i = shuffled.size() - 1; i > 0; --i) {
    std::swap(shuffled[i], shuffled[rng.below(static_cast<std::uint32_t>(i + 1))]);
  }
  ExampleSet part{.file = from.file};
  part.examples.assign(shuffled.begin(), shuffled.begin() + static_cast<std::ptrdiff_t>(count));
  from.examples.assign(shuffled.begin() + static_cast<std::ptrdiff_t>(count), shuffled.end());
  std::sort(part.examples.begin(), part.examples.end());
  std::sort(from.examples.begin(), from.examples.end());
  return part;
}

void enlarge(BatchRoom& room, const ExampleSet& set, std::span<const std::uint32_t> batch) {
  BatchRoom needed;
  for (const std::uint32_t example : batch) {
    needed.tokens += set.file->tokens(set.examples[example]);
    needed.labels += set.file->trained_tokens(set.examples[example]);
  }
  room.tokens = std::max(room.tokens, needed.tokens);
  room.labels = std::max(room.labels, needed.labels);
}

// Runs of more batches are not looked through for their largest one.
constexpr std::uint64_t most_measured = 1'000'000;

// No batch of any order needs more.
BatchRoom room_of_any_batch(const ExampleSet& set, const TrainOptions& options) {
  const std::uint64_t limit = options.packing ? std::uint64_t{options.batch_size} * row_limit(options) : UINT32_MAX;
  const std::uint64_t examples = options.packing ? set.examples.size() : options.batch_size;
  const auto largest = [&](auto&& size_of) {
    std::vector<std::uint32_t> sizes;
    for (const std::uint32_t example : set.examples) sizes.push_back(size_of(example));
    std::sort(sizes.rbegin(), sizes.rend());
    // With weights an example may come again in the same batch.
    if (options.data.weighted()) std::fill(sizes.begin(), sizes.end(), sizes.front());
    sizes.resize(std::min<std::uint64_t>(sizes.size(), examples));
    return static_cast<std::uint32_t>(std::min(limit, std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0})));
  };
  return {.tokens = largest([&](std::uint32_t example) { return set.file->tokens(example); }),
          .labels = largest([&](std::uint32_t example) { return set.file->trained_tokens(example); })};
}

}  // namespace

TokenStream stream_of(const data::Batch& batch) {
  return {.tokens = batch.tokens, .position = batch.position, .segment_begin = batch.segment_begin,
          .segment_end = batch.segment_end, .label_rows = batch.label_rows, .labels = batch.labels, .sides = batch.sides,
          .reference = batch.reference};
}

std::uint64_t chosen_labels(const data::Batch& batch) {
  std::uint64_t count = 0;
  for (std::size_t side = 0; side + 1 < batch.sides.size(); side += 2) count += batch.sides[side + 1] - batch.sides[side];
  return count;
}

std::vector<data::Share> ExampleSet::shares(const data::DataFiles& files) const {
  std::vector<data::Share> shares;
  for (const data::FileExamples& part : file->files()) {
    const auto begin = std::lower_bound(examples.begin(), examples.end(), part.begin);
    const auto count = static_cast<std::uint32_t>(std::lower_bound(begin, examples.end(), part.end) - begin);
    check<UsageError>(count > 0, "--valid-fraction", "It takes all examples of {}, and none is left to train on.", part.name);
    shares.push_back({.examples = count, .weight = *files.files()[shares.size()].weight});
  }
  return shares;
}

std::vector<std::uint32_t> ExampleSet::lengths() const {
  std::vector<std::uint32_t> result;
  for (const std::uint32_t example : examples) result.push_back(file->tokens(example));
  return result;
}

std::uint64_t ExampleSet::tokens() const {
  std::uint64_t sum = 0;
  for (const std::uint32_t example : examples) sum += file->tokens(example);
  return sum;
}

std::uint64_t ExampleSet::trained_tokens() const {
  std::uint64_t sum = 0;
  for (const std::uint32_t example : examples) sum += file->trained_tokens(example);
  return sum;
}

data::Batch ExampleSet::batch(std::span<const std::uint32_t> of_set) const {
  std::vector<std::uint32_t> of_file;
  for (const std::uint32_t index : of_set) of_file.push_back(examples[index]);
  data::Batch batch = file->batch(of_file);
  if (reference.empty()) return batch;
  for (const std::uint32_t index : of_set) {
    batch.reference.insert(batch.reference.end(), {reference[2 * index], reference[2 * index + 1]});
  }
  return batch;
}

std::unique_ptr<RunData> open_run_data(const TrainOptions& options, const std::function<void(double)>& progress) {
  auto data = std::make_unique<RunData>(open_tokenizer(options));
  check<UsageError>(!options.valid.weighted(), "--valid", "Weights say how training draws; every validation row counts once, so leave "
                    "them out of {}.", options.valid.text());
  data->train = whole(open_files(*data, options.data, options, progress));
  if (!options.valid.empty()) {
    data->valid = whole(open_files(*data, options.valid, options, progress));
  } else if (options.valid_fraction > 0) {
    data->valid = split_off(data->train, options.valid_fraction, options.seed);
  }
  return data;
}

StepFeed::StepFeed(const ExampleSet& set, const TrainOptions& options)
    : set_(set),
      options_(options),
      shares_(options.data.weighted() ? set.shares(options.data) : std::vector<data::Share>()),
      sampler_(set.lengths(), sampler_options(options, shares_)) {
  if (options.max_steps > 0) {
    total_steps_ = options.max_steps;
  } else {
    const auto whole_epochs = static_cast<std::uint64_t>(options.epochs);
    for (std::uint64_t epoch = 0; epoch < whole_epochs; ++epoch) total_steps_ += steps_in_epoch(epoch);
    const double rest = options.epochs - static_cast<double>(whole_epochs);
    total_steps_ += static_cast<std::uint64_t>(std::ceil(rest * static_cast<double>(steps_in_epoch(whole_epochs))));
  }
  check<UsageError>(total_steps_ > 0, "train", "The run has no steps; give more epochs or --max-steps.");
  measure();
}

std::vector<std::uint32_t> StepFeed::drawn() const {
  return shares_.empty() ? std::vector<std::uint32_t>() : data::drawn_of(shares_, static_cast<std::uint32_t>(set_.examples.size()));
}

std::uint64_t StepFeed::batches_in_epoch(std::uint64_t epoch) const {
  auto& count = batches_in_epoch_[epoch];
  if (count == 0) count = sampler_.batches_in_epoch(epoch);
  return count;
}

std::uint64_t StepFeed::steps_in_epoch(std::uint64_t epoch) const {
  return (batches_in_epoch(epoch) + options_.gradient_accumulation - 1) / options_.gradient_accumulation;
}

void StepFeed::measure() {
  data::Sampler ahead = sampler_;
  std::uint64_t batches = 0, steps = total_steps_;
  for (std::uint64_t epoch = 0; steps > 0 && batches <= most_measured; ++epoch) {
    const std::uint64_t here = std::min(steps, steps_in_epoch(epoch));
    batches += std::min(here * options_.gradient_accumulation, batches_in_epoch(epoch));
    steps -= here;
  }
  if (batches > most_measured) {
    room_ = room_of_any_batch(set_, options_);
    return;
  }
  for (std::uint64_t i = 0; i < batches; ++i) enlarge(room_, set_, ahead.next());
}

double StepFeed::epoch() const {
  const data::Cursor cursor = sampler_.cursor();
  return static_cast<double>(cursor.epoch) +
         static_cast<double>(cursor.batch) / static_cast<double>(batches_in_epoch(cursor.epoch));
}

std::vector<data::Batch> StepFeed::next() {
  std::vector<data::Batch> batches;
  do {
    batches.push_back(set_.batch(sampler_.next()));
  } while (batches.size() < options_.gradient_accumulation &&
           sampler_.cursor().batch < batches_in_epoch(sampler_.cursor().epoch));
  return batches;
}

std::vector<std::vector<std::uint32_t>> evaluation_batches(const ExampleSet& set, std::uint32_t batch_size) {
  std::vector<std::vector<std::uint32_t>> batches;
  for (std::uint32_t i = 0; i < set.examples.size(); ++i) {
    if (i % batch_size == 0) batches.emplace_back();
    batches.back().push_back(i);
  }
  return batches;
}

BatchRoom room_of(const ExampleSet& set, const std::vector<std::vector<std::uint32_t>>& batches) {
  BatchRoom room;
  for (const auto& batch : batches) enlarge(room, set, batch);
  return room;
}

}  // namespace nibble
