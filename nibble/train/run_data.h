#pragma once

#include "nibble/data/batch.h"
#include "nibble/data/dataset.h"
#include "nibble/data/sampler.h"
#include "nibble/model/stream.h"
#include "nibble/text/chat_template.h"
#include "nibble/text/tokenizer.h"
#include "nibble/text/tokenizer_files.h"
#include "nibble/train/options.h"

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

namespace nibble {

// The same arrays as the model names them.
TokenStream stream_of(const data::Batch& batch);
// Labels of the chosen answers of a batch of pairs.
std::uint64_t chosen_labels(const data::Batch& batch);

// Some examples of a data set, in its order: all, or the part that training or validation has.
struct ExampleSet {
  std::shared_ptr<const data::Dataset> file;
  std::vector<std::uint32_t> examples;
  std::vector<float> reference;  // of DPO, two of each example; see reference_logps

  // The examples of each of the files, with their weights. Throws UsageError where a file has none.
  std::vector<data::Share> shares(const data::DataFiles& files) const;
  std::vector<std::uint32_t> lengths() const;
  std::uint64_t tokens() const;
  std::uint64_t trained_tokens() const;
  data::Batch batch(std::span<const std::uint32_t> of_set) const;
};

// Tokens by text or id, as --train-tokens has them.
struct TokenChoice {
  std::vector<std::uint32_t> ids;      // in the order in which they were given
  std::vector<text::NewToken> added;   // those that the tokenizer did not know
  std::uint32_t known = 0;             // one more than the highest id that the tokenizer had before
};

// What a run reads.
struct RunData {
  text::Tokenizer tokenizer;
  std::optional<text::ChatTemplate> chat_template;
  TokenChoice tokens = {};
  text::TokenizerFiles tokenizer_files = {};  // with the added tokens; empty where none were
  ExampleSet train = {}, valid = {};          // valid may be empty
};

// The tokenizer and template are those of options.init_adapter where that has its own. UsageError where a token of options.train_tokens
// cannot be had: an id beyond the table, or a new token for which it has no row left.
// `progress` hears the part of the rows that is read, of training's, then of validation's.
std::unique_ptr<RunData> open_run_data(const TrainOptions& options, const std::function<void(double)>& progress = {});

// Room that the largest batch needs.
struct BatchRoom {
  std::uint32_t tokens = 0, labels = 0;
};

// Training's batches, step after step. A step is gradient_accumulation batches; the last one of an epoch may have fewer.
class StepFeed {
 public:
  StepFeed(const ExampleSet& set, const TrainOptions& options);

  std::uint64_t total_steps() const { return total_steps_; }
  // Of each file, and how many of them an epoch draws; empty where the files have no weights.
  const std::vector<data::Share>& shares() const { return shares_; }
  std::vector<std::uint32_t> drawn() const;
  // Of all steps of the run.
  BatchRoom room() const { return room_; }
  double epoch() const;  // done so far, with the part of the current one

  std::vector<data::Batch> next();
  data::Cursor cursor() const { return sampler_.cursor(); }
  void seek(const data::Cursor& cursor) { sampler_.seek(cursor); }

 private:
  std::uint64_t batches_in_epoch(std::uint64_t epoch) const;
  std::uint64_t steps_in_epoch(std::uint64_t epoch) const;
  void measure();

  const ExampleSet& set_;
  const TrainOptions& options_;
  std::vector<data::Share> shares_;  // empty where the files have no weights
  data::Sampler sampler_;
  std::uint64_t total_steps_ = 0;
  BatchRoom room_;
  mutable std::map<std::uint64_t, std::uint64_t> batches_in_epoch_;  // found so far
};

// The examples of a set in order, in batches of at most batch_size examples.
std::vector<std::vector<std::uint32_t>> evaluation_batches(const ExampleSet& set, std::uint32_t batch_size);
BatchRoom room_of(const ExampleSet& set, const std::vector<std::vector<std::uint32_t>>& batches);

}  // namespace nibble
