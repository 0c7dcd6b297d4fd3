#include "nibble/train/evaluate.h"

namespace nibble {

Evaluation evaluate(Model& model, const ExampleSet& set, std::uint32_t batch_size,
                    const std::function<void(double)>& progress) {
  Evaluation result;
  double loss_sum = 0;
  std::uint64_t correct_sum = 0;
  const auto batches = evaluation_batches(set, batch_size);
  gpu::Recorder recorder(model.device());
  for (std::size_t i = 0; i < batches.size(); ++i) {
    const data::Batch batch = set.batch(batches[i]);
    const DeviceStream stream = model.upload(recorder, stream_of(batch));
    const Head::Loss loss = model.loss(recorder, stream);
    recorder.submit();
    const auto losses = model.device().read<float>(loss.loss);
    const auto correct = model.device().read<std::uint32_t>(loss.correct);
    const std::size_t first = result.rows.size();
    for (const std::uint64_t row : batch.rows) result.rows.push_back({.row = row});
    for (std::size_t label = 0; label < batch.labels.size(); ++label) {
      RowLoss& row = result.rows[first + batch.row_of_label[label]];
      row.loss += losses[label];
      row.tokens += 1;
      row.correct += correct[label];
    }
    if (progress) progress(static_cast<double>(i + 1) / static_cast<double>(batches.size()));
  }
  for (RowLoss& row : result.rows) {
    loss_sum += row.loss;
    correct_sum += row.correct;
    result.tokens += row.tokens;
    if (row.tokens > 0) row.loss /= static_cast<double>(row.tokens);
  }
  if (result.tokens > 0) {
    result.loss = loss_sum / static_cast<double>(result.tokens);
    result.accuracy = static_cast<double>(correct_sum) / static_cast<double>(result.tokens);
  }
  return result;
}

}  // namespace nibble
