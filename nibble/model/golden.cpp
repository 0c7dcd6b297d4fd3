#include "nibble/model/golden.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble {
namespace {

std::vector<std::int32_t> read_i32(const SafetensorsFile& file, std::string_view name) {
  const TensorInfo& info = file.at(name);
  check<DataError>(info.dtype == DType::i32 && info.shape.size() == 2, file.path().string(),
                   "Tensor \"{}\" must be I32 of two dimensions, not {} {}.", name, info.dtype_name, to_string(info.shape));
  std::vector<std::int32_t> values(info.numel());
  file.read(info, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

// A batch as PyTorch has it, padded to the right.
struct PaddedBatch {
  std::vector<std::int32_t> ids, labels, mask;
  std::size_t rows = 0, width = 0;

  // `prefix` stands before the tensors' names.
  PaddedBatch(const SafetensorsFile& file, const std::string& prefix)
      : ids(read_i32(file, prefix + "input_ids")),
        labels(read_i32(file, prefix + "labels")),
        mask(read_i32(file, prefix + "attention_mask")) {
    check<DataError>(ids.size() == labels.size() && ids.size() == mask.size(), file.path().string(),
                     "{0}input_ids, {0}labels and {0}attention_mask differ in size.", prefix);
    rows = static_cast<std::size_t>(file.at(prefix + "input_ids").shape[0]);
    width = rows == 0 ? 0 : ids.size() / rows;
  }
};

void append_row(GoldenRows& result, const PaddedBatch& batch, std::size_t row) {
  const auto first = batch.mask.begin() + static_cast<std::ptrdiff_t>(row * batch.width);
  const auto length = static_cast<std::uint32_t>(std::find(first, first + static_cast<std::ptrdiff_t>(batch.width), 0) - first);
  const auto begin = static_cast<std::uint32_t>(result.tokens.size());
  for (std::uint32_t i = 0; i < length; ++i) {
    const std::size_t at = row * batch.width + i;
    result.tokens.push_back(static_cast<std::uint32_t>(batch.ids[at]));
    result.position.push_back(i);
    result.segment_begin.push_back(begin);
    result.segment_end.push_back(begin + length);
    if (i + 1 < length && batch.labels[at + 1] >= 0) {
      result.label_rows.push_back(begin + i);
      result.labels.push_back(static_cast<std::uint32_t>(batch.labels[at + 1]));
    }
  }
  if (begin == 0) result.first_row_tokens = length;
}

// Of a device's matrix, whose rank is the largest of all modules, the part that is the adapter's own. Empty where the shape is no such
// part, or what pads it is not zero.
std::vector<float> own_part(const std::vector<float>& values, const Tensor& padded, const Shape& shape) {
  if (padded.rank() == 1) return shape == Shape{padded.dim(0)} ? values : std::vector<float>{};
  if (shape.size() != 2 || shape[0] < 0 || shape[1] < 0) return {};
  const auto rows = static_cast<std::uint64_t>(shape[0]), columns = static_cast<std::uint64_t>(shape[1]), width = std::uint64_t{padded.dim(1)};
  if (rows > padded.dim(0) || columns > width || (rows < padded.dim(0) && columns < width)) return {};
  std::vector<float> own;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i / width < rows && i % width < columns) {
      own.push_back(values[i]);
    } else if (values[i] != 0) {
      return {};
    }
  }
  return own;
}

double norm(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += double{value} * value;
  return std::sqrt(sum);
}

// Where the gradient of a name like "base_model.model.model.layers.3.mlp.up_proj.lora_B.weight" lies.
Tensor gradient_of(const Model& model, const std::string& peft_name) {
  if (model.tokens()) {
    if (const Tensor rows = model.tokens()->gradient_named(peft_name)) return rows;
  }
  for (std::uint32_t layer = 0; layer < model.config().num_layers; ++layer) {
    for (const Projection p : all_projections) {
      const LoraSlot& slot = model.lora()->slot(layer, p);
      if (!slot.used()) continue;
      const auto modules = module_names(model.config().experts.count, layer, p);
      const auto count = static_cast<std::uint32_t>(modules.size());
      const auto part = [&](const Tensor& all, std::uint32_t i) { return all.rows(all.dim(0) / count * i, all.dim(0) / count * (i + 1)); };
      for (std::uint32_t i = 0; i < count; ++i) {
        if (peft_name == peft_tensor_name(modules[i], LoraMatrix::a)) return part(slot.a_grad, i);
        if (peft_name == peft_tensor_name(modules[i], LoraMatrix::b)) return part(slot.b_grad, i);
        // As PyTorch names the parameter, which PEFT's files have without its last part.
        if (peft_name == peft_tensor_name(modules[i], LoraMatrix::magnitude) + ".weight") return slot.magnitude_grad;
      }
    }
  }
  return {};
}

}  // namespace

GoldenRows read_golden_rows(const SafetensorsFile& golden) {
  const PaddedBatch batch(golden, "");
  GoldenRows result;
  for (std::size_t row = 0; row < batch.rows; ++row) append_row(result, batch, row);
  check<DataError>(!result.labels.empty(), golden.path().string(), "No token of the golden rows is labelled.");
  return result;
}

bool holds_preferences(const SafetensorsFile& golden) { return golden.find("chosen.input_ids") != nullptr; }

GoldenRows read_golden_pairs(const SafetensorsFile& golden) {
  const PaddedBatch chosen(golden, "chosen."), rejected(golden, "rejected.");
  check<DataError>(chosen.rows == rejected.rows && chosen.rows > 0, golden.path().string(),
                   "There are {} chosen and {} rejected rows; as many of both are needed.", chosen.rows, rejected.rows);
  GoldenRows result{.sides = {0}};
  for (std::size_t row = 0; row < chosen.rows; ++row) {
    for (const PaddedBatch* side : {&chosen, &rejected}) {
      append_row(result, *side, row);
      const auto end = static_cast<std::uint32_t>(result.labels.size());
      check<DataError>(end > result.sides.back(), golden.path().string(), "Pair {} has an answer without a label.", row);
      result.sides.push_back(end);
    }
  }
  return result;
}

double relative_error(std::span<const float> ours, std::span<const float> reference) {
  double sum = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) sum += std::pow(double{ours[i]} - reference[i], 2);
  const double error = std::sqrt(sum) / std::max(norm(reference), std::numeric_limits<double>::min());
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

double cosine(std::span<const float> ours, std::span<const float> reference) {
  double dot = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) dot += double{ours[i]} * reference[i];
  const double result = dot / std::max(norm(ours) * norm(reference), std::numeric_limits<double>::min());
  return std::isfinite(result) ? result : -1.0;
}

std::vector<GradientParity> compare_gradients(Model& model, const Tensor& d_head, const SafetensorsFile& golden,
                                              std::string_view prefix) {
  std::vector<GradientParity> gradients;
  for (const auto& [name, info] : golden.tensors()) {
    if (!name.starts_with(prefix)) continue;
    const std::string peft_name = name.substr(prefix.size());
    const Tensor ours = peft_name == "lm_head.weight" ? d_head : gradient_of(model, peft_name);
    check<DataError>(static_cast<bool>(ours), golden.path().string(), "\"{}\" is the gradient of no matrix of this adapter.",
                     name);
    const auto reference = golden.read_as_f32(name);
    const auto values = own_part(model.device().read<float>(ours), ours, info.shape);
    check<DataError>(reference.size() == values.size(), golden.path().string(),
                     "\"{}\" is {}; the adapter's matrix is {}, of which such a part is not its own.", name, to_string(info.shape),
                     ours.shape_text());
    gradients.push_back({peft_name, relative_error(values, reference), cosine(values, reference)});
  }
  check<DataError>(!gradients.empty(), golden.path().string(), "The file holds no gradients (\"{}*\").", prefix);
  return gradients;
}

}  // namespace nibble
