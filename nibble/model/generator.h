#pragma once

#include "nibble/gpu/readback.h"
#include "nibble/kernels/choose_token.h"
#include "nibble/model/decode_layers.h"
#include "nibble/model/generator_sizes.h"
#include "nibble/model/head.h"
#include "nibble/model/layers.h"
#include "nibble/model/model_state.h"
#include "nibble/model/step_layers.h"

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace nibble {

struct GeneratorOptions {
  ProductPath path = ProductPath::f32;  // of a state, its own
  std::uint32_t capacity = 4096;  // tokens of one text, prompt and answer; cut to what the model's positions allow
  std::uint32_t piece = 0;        // most tokens of prompts computed at a time; 0: by the adapter
  std::uint32_t sequences = 1;    // texts that are kept side by side
  // Workgroups that do layers for one token in one dispatch (step_layers.h); 0: it takes several; empty: by the adapter.
  std::optional<std::uint32_t> step_workgroups = {};
  // Texts from which on their last tokens are computed at once by matrix units, where the path has them, not by vectors; 0: never; empty:
  // by the adapter.
  std::optional<std::uint32_t> least_on_matrices = {};
  // Whether the GPU goes on by itself with tokens whose choice is foreseen (see Generator::next); empty: by the adapter.
  std::optional<bool> goes_ahead = {};
  // Of keys and values, f32 or f16, where they may be f16; empty: by the adapter.
  std::optional<DType> key_dtype = {};
};

// A causal language model that continues texts. It keeps keys and values of the tokens that it has seen, so that only what
// is new is computed; layers and head are those of training.
class Generator {
 public:
  // Works on the state's weights and adapters, with its path; the state must outlive it.
  Generator(const ModelState& state, const GeneratorOptions& options);
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  // Logits (vocab) of the token that follows `tokens`. Of the last call's tokens the common beginning is not computed again.
  // Throws DataError for no token, more than capacity(), or an id beyond the vocabulary. The span holds until the next call.
  std::span<const float> logits(std::span<const std::uint32_t> tokens);

  // The same of several texts, each in a place of its own, from 0 on and in order. Of those that go on the last token of each is computed
  // together, so that weights are read once for up to eight of them, on matrix units for most_decoding_rows; new texts that fit into one
  // piece are too, on matrix units.
  struct Text {
    std::uint32_t sequence;
    std::span<const std::uint32_t> tokens;
  };
  std::vector<std::span<const float>> all_logits(std::span<const Text> texts);

  // What is known of the token that follows a text: its logits, or where these were not read back, which takes many times the bytes,
  // the best of them.
  struct Next {
    std::span<const float> logits;
    BestOfRow best;  // where there are no logits
  };
  // As all_logits(); the best are enough for the caller, who may ask for the logits of those texts before the next call. Of one text whose
  // next tokens are foreseen the GPU takes the next itself, and computes what follows while the caller has yet to look. A text that comes
  // back with another token is computed as ever.
  std::vector<Next> next(std::span<const Text> texts, const std::optional<ForeseenTokens>& foreseen = {});
  std::span<const float> read_logits(std::uint32_t sequence);
  // How many of the best are known at least.
  std::uint32_t best_known() const { return best_scores_found(config_.vocab_size); }

  // With the adapters (as at first) or without. A change forgets what has been seen.
  void use_adapter(bool use);

  std::uint32_t capacity() const { return capacity_; }
  std::uint32_t sequences() const { return static_cast<std::uint32_t>(seen_.size()); }
  // Whether a token's layers are done in one dispatch as far as they lie together (step_layers.h). Where this fails once, it takes several from there on, and a warning says so.
  bool steps_in_one_dispatch() const { return step_.has_value(); }
  // Of keys and values.
  DType key_dtype() const { return keys_.front().k.dtype(); }
  // Tokens whose keys and values are kept.
  std::uint32_t seen(std::uint32_t sequence = 0) const { return static_cast<std::uint32_t>(seen_[sequence].size()); }
  // Tokens computed so far, over all calls, and of these the ones that the GPU had gone on with.
  std::uint64_t computed() const { return computed_; }
  std::uint64_t computed_ahead() const { return computed_ahead_; }

  // Of options.sequences, texts that one pass takes the last tokens of, and that so many bytes have room for beside the weights; at least 1.
  static std::uint32_t texts_that_fit(const ModelState& state, GeneratorOptions options, std::uint64_t memory);

  // Bytes on the device beside the weights.
  static std::uint64_t bytes(const gpu::Device& device, const ModelConfig& config, const GeneratorOptions& options,
                             std::uint32_t rank, bool use_dora = false);

 private:
  // Tokens that are computed at once: some of one text, the last one of several, or all of several; and where the first one's keys go.
  struct Pass {
    DeviceStream stream;
    std::uint32_t first_key = 0, most_keys = 0, position = 0;
    bool few = false;    // through `steps_`, else through `pieces_`
    bool one = false;    // through `step_`
    bool one_each = false;  // token of each text
    bool apart = false;  // of several texts
  };

  // What is read back of a pass, and how the GPU chooses the token after the best, if it does.
  struct Wanted {
    enum class Of { nothing, logits, best } of = Of::nothing;
    std::optional<SamplingRule> choice = {};

    bool operator==(const Wanted&) const = default;
  };

  // The step after the last one that was submitted, recorded while the GPU computes that one: it differs from what will be asked for in
  // nothing but the tokens, which are uploaded before it is submitted.
  struct Prepared {
    std::vector<std::uint32_t> places;  // sequence and tokens before it, of each text
    std::unique_ptr<gpu::Recorder> recorder;
    Wanted wanted;
    Tensor logits;
  };

  // A step of one text that was submitted before its token was asked for: the one that the GPU has chosen.
  struct Ahead {
    std::vector<std::uint32_t> places;
    std::uint32_t token = 0;  // known once the list before it has been read
    Tensor logits;
  };

  void check_text(const Text& text) const;
  // Whether `step_` takes them.
  bool in_one_dispatch(std::span<const Text> parts) const { return step_ && parts.size() == 1 && parts[0].tokens.size() == 1; }
  std::uint32_t first_row(std::uint32_t sequence) const { return sequence * rows_; }  // of the keys
  // What is written to the stream's room, and how a pass sees it; with so many tokens of each text between those seen and the parts.
  std::pair<Pass, std::vector<std::uint32_t>> plan(std::span<const Text> parts, std::uint32_t between = 0) const;
  Tensor record_pass(gpu::Recorder& recorder, const Pass& pass, const Wanted& wanted);
  // generator_steps.cpp
  std::vector<std::uint32_t> places_of(std::span<const Text> parts, std::uint32_t between = 0) const;
  void prepare_next(std::span<const Text> parts, const Wanted& wanted, std::uint32_t between = 0);
  std::optional<Tensor> submit_prepared(std::span<const Text> parts, const Wanted& wanted);
  std::optional<Tensor> take_ahead(std::span<const Text> parts, const Wanted& wanted);
  // Submits what follows the parts, whose step was submitted with the same wish, if it can be known.
  void go_ahead(std::span<const Text> parts, const Wanted& wanted);
  void drop_ahead();
  // Of the one text whose following step has overwritten the logits.
  void compute_again(std::uint32_t sequence);
  void forget_steps();
  Tensor run_layers(gpu::Recorder& recorder, const Pass& pass);
  Dora* dora() const { return lora_ ? adapters_->dora() : nullptr; }
  void forget_changed_adapters();
  // Keeps what is common to each text and what has been seen; a short beginning is given up where texts can be computed together instead.
  void forget_what_changed(std::span<const Text> texts);
  // Whether a new text may be computed with these, which are new too.
  bool joins(std::span<const Text> parts, const Text& text) const;
  // All but its last token, and that too where it is in one piece with what comes before it.
  void compute_beginning(const Text& text);
  // Computes all but the last token of each text, and where that is one piece with what comes before it, its logits; returns the texts
  // whose last token is left.
  std::vector<Text> compute_beginnings(std::span<const Text> texts);
  // Computes and keeps the parts, whose texts go on from what has been seen.
  void compute(std::span<const Text> parts, const Wanted& wanted);
  // The same up to what is wanted, in found_, in passed_ or of one part where its logits are kept; false where `step_` waited in vain.
  bool run(std::span<const Text> parts, const Wanted& wanted);
  // Submits the parts' pass and begins to read what is wanted; returns its logits.
  Tensor submit(std::span<const Text> parts, const Wanted& wanted);
  std::span<float> logits_of(std::uint32_t sequence);

  gpu::Device& device_;
  ModelConfig config_;
  const DeviceWeights& weights_;
  LoraMirror* adapters_;  // of the state; null without
  std::uint64_t adapters_version_ = 0;  // that what has been seen was computed with
  std::uint32_t capacity_, rows_;  // of a text: tokens, and rows of the keys
  const LoraWeights* lora_ = nullptr;   // in use
  PassSizes sizes_;
  Head head_;
  TrainedTokens* tokens_ = nullptr;     // the state's
  std::unique_ptr<Layers> pieces_;
  const LoraWeights* in_pieces_ = nullptr;  // adapters that these have had, as they are
  std::optional<DecodeLayers> steps_;   // of a few tokens; empty where sizes do not allow it, and pieces serve
  std::optional<StepLayers> step_;      // of one token of one text; empty where it is not possible, and `steps_` serve
  std::vector<KeyCache> keys_;  // by layer: of all sequences
  Tensor stream_room_;
  Rotations rotations_;
  std::array<Tensor, 2> residual_;
  std::vector<std::vector<std::uint32_t>> seen_;  // by sequence
  std::optional<Prepared> prepared_;
  bool goes_ahead_;
  std::optional<Ahead> ahead_;
  std::array<float, 2> draws_{};                  // for the token after the pass that runs, and the one after that
  Tensor draw_;
  std::vector<float> logits_, passed_;            // of all sequences, and of a pass
  BestScoresRoom best_;
  std::vector<std::uint32_t> found_;              // the lists of a pass
  gpu::Readback logits_readback_;
  std::array<gpu::Readback, 2> best_readbacks_;   // in turns, the first of the pass that runs
  Tensor last_logits_;                            // of the pass whose best were read
  std::vector<std::uint32_t> last_sequences_;
  std::uint64_t computed_ = 0, computed_ahead_ = 0;
};

}  // namespace nibble
