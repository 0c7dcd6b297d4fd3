#include "nibble/data/line_reader.h"
#include "nibble/train/run_data.h"
#include "nibble/train/trainer.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

namespace nibble::promises_test {
namespace {

std::uint64_t hash_of_base(const ModelState& state) {
  Fnv1a64 hash;
  for (const LayerWeights& layer : state.weights().layers) {
    for (const Nf4Matrix& matrix : layer.projections) {
      for (const auto& tensor : {matrix.packed, matrix.absmax}) {
        const auto bytes = state.device().read<char>(tensor);
        hash.add({bytes.data(), bytes.size()});
      }
    }
  }
  return hash.value();
}

// The end of an answer is a token that the tiny model's pre-training never saw: its row of the head has a cosine above 0.99 with
// those of 53 others that were not seen either. A frozen head cannot tell these apart, so it is no label here.
void leave_out_the_end(data::Batch& batch) {
  constexpr std::uint32_t end = 4095;
  std::vector<std::uint32_t> rows, labels;
  for (std::size_t i = 0; i < batch.labels.size(); ++i) {
    if (batch.labels[i] == end) continue;
    rows.push_back(batch.label_rows[i]);
    labels.push_back(batch.labels[i]);
  }
  batch.label_rows = rows;
  batch.labels = labels;
}

// What the documented state promises of training: a toy run halves its loss in 100 updates, four rows are learned by heart by
// the adapters alone, and the base stays as it is.
TEST(Promises, FourRowsAreLearnedByHeart) {
  TrainOptions options{.model = test::source_path("models/tiny-qwen3"), .data = test::source_path("data/define/valid.jsonl")};
  const auto data = open_run_data(options);
  const std::vector<std::uint32_t> four = {0, 1, 2, 3};
  data::Batch batch = data->train.batch(four);
  leave_out_the_end(batch);
  const auto room = static_cast<std::uint32_t>(batch.tokens.size());

  ModelState state = ModelState::load(test::device(), options.model,
                                      {.path = ProductPath::f32, .lora = LoraConfig{.rank = 16, .lora_alpha = 32}});
  const std::uint64_t base = hash_of_base(state);
  Trainer trainer(state, {.model = {.max_tokens = room, .max_labels = room}});
  const TokenStream streams[] = {stream_of(batch)};
  double first = 0, last = 1;
  while (trainer.current_step() < 100 && last >= 0.1) {
    last = trainer.full_train_step(streams, 2e-3).loss;
    if (trainer.current_step() == 1) first = last;
  }
  EXPECT_LT(last, first / 2);
  EXPECT_LT(last, 0.1);
  EXPECT_GT(first, 2.0) << "the rows were not known before";
  EXPECT_EQ(hash_of_base(state), base);
}

}  // namespace
}  // namespace nibble::promises_test
