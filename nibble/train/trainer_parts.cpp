#include "nibble/base/error.h"
#include "nibble/kernels/lora.h"
#include "nibble/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

// The parts of an update on arrays of the host.
namespace nibble {
namespace {

const LoraSlot& slot_of(const LoraWeights& lora, std::uint32_t layer, Projection projection) {
  check<UsageError>(layer < lora.layers.size(), "trainer", "Layer {} was asked for; the model has {}.", layer, lora.layers.size());
  const LoraSlot& slot = lora.slot(layer, projection);
  check<UsageError>(slot.used(), "trainer", "{} has no adapter.", projection_module_name(layer, projection));
  return slot;
}

}  // namespace

std::uint32_t Trainer::rows_of(std::span<const float> values, std::uint32_t columns, std::string_view name) const {
  const std::uint64_t rows = values.size() / columns, most = options_.model.max_tokens;
  check<UsageError>(rows > 0 && rows <= most && rows * columns == values.size(), "trainer",
                    "{} has {} values, which are not 1 to {} rows of {}.", name, values.size(), most, columns);
  return static_cast<std::uint32_t>(rows);
}

Tensor Trainer::upload(std::span<const float> values, std::uint32_t columns, std::string_view name) {
  return state_.device().tensor<float>(DType::f32, {rows_of(values, columns, name), columns}, values, name);
}

DeviceStream Trainer::one_segment(gpu::Recorder& recorder, std::uint32_t tokens) {
  std::vector<std::uint32_t> position(tokens);
  std::iota(position.begin(), position.end(), 0u);
  const std::vector<std::uint32_t> zeros(tokens), ends(tokens, tokens);
  return model().upload(recorder, {.tokens = zeros, .position = position, .segment_begin = zeros, .segment_end = ends,
                                   .label_rows = {}, .labels = {}});
}

LayerResult Trainer::layer_train_step(std::uint32_t layer, std::span<const float> hidden, std::span<const float> d_output,
                                      double learning_rate) {
  check<UsageError>(layer < state_.num_layers(), "trainer", "Layer {} was asked for; the model has {}.", layer, state_.num_layers());
  check<UsageError>(hidden.size() == d_output.size(), "trainer", "hidden has {} values and d_output {}.", hidden.size(), d_output.size());
  Model& on = model();
  const LoraWeights& lora = *state_.lora_mirror().train();
  const Tensor input = upload(hidden, state_.hidden_size(), "hidden"), dx = upload(d_output, state_.hidden_size(), "d_output");
  const Tensor output = state_.device().tensor(DType::f32, {input.dim(0), input.dim(1)}, "output");
  gpu::Recorder recorder(state_.device());
  const DeviceStream stream = one_segment(recorder, input.dim(0));
  recorder.clear(lora.grads);
  on.forward_layer(recorder, stream, layer, input, output);
  on.backward_layer(recorder, stream, layer, input, dx);
  optimizer_.record_layer_step(recorder, lora, state_.lora_mirror().moments(), layer, learning_rate, state_.step + 1);
  recorder.submit();
  LayerResult result{.output = state_.device().read<float>(output), .d_input = state_.device().read<float>(dx),
                     .grad_norm = state_.device().read<float>(optimizer_.norm_and_factor())[0]};
  if (!std::isfinite(result.grad_norm)) optimizer_.forgive();
  ++state_.step;
  return result;
}

std::vector<float> Trainer::ffn_backward(std::uint32_t layer, std::span<const float> input, std::span<const float> d_output) {
  check<UsageError>(layer < state_.num_layers(), "trainer", "Layer {} was asked for; the model has {}.", layer, state_.num_layers());
  check<UsageError>(input.size() == d_output.size(), "trainer", "input has {} values and d_output {}.", input.size(), d_output.size());
  Model& on = model();
  const Tensor x = upload(input, state_.hidden_size(), "input"), dx = upload(d_output, state_.hidden_size(), "d_output");
  const Tensor output = state_.device().tensor(DType::f32, {x.dim(0), x.dim(1)}, "output");
  gpu::Recorder recorder(state_.device());
  const DeviceStream stream = one_segment(recorder, x.dim(0));
  recorder.clear(on.lora()->grads);
  on.forward_mlp(recorder, stream, layer, x, output);
  on.backward_mlp(recorder, stream, layer, dx);
  recorder.submit();
  return state_.device().read<float>(dx);
}

std::vector<float> Trainer::lora_forward(std::uint32_t layer, Projection projection, std::span<const float> x) {
  const LoraWeights& lora = *state_.lora_mirror().on_device();
  const LoraSlot& slot = slot_of(lora, layer, projection);
  check<UsageError>(!lora.use_dora, "trainer", "An adapter of DoRA is no sum of W x and a part of its own.");
  gpu::Device& device = state_.device();
  const Tensor input = upload(x, slot.a.dim(1), "x");
  const Tensor h = device.tensor(DType::f32, {input.dim(0), lora.rank}, "h");
  const Tensor y = device.tensor(DType::f32, {input.dim(0), slot.b.dim(0)}, "y");
  gpu::Recorder recorder(device);
  record(recorder, LoraDown{.x = {input, {}}, .a = slot.a, .h = h});
  record(recorder, LoraUp{.h = h, .b = slot.b, .y = y, .scaling = slot.scaling});
  recorder.submit();
  return device.read<float>(y);
}

LoraGradients Trainer::lora_backward(std::uint32_t layer, Projection projection, std::span<const float> x,
                                     std::span<const float> dy) {
  const LoraWeights& lora = *model().lora();
  const LoraSlot& slot = slot_of(lora, layer, projection);
  check<UsageError>(!lora.use_dora, "trainer", "An adapter of DoRA is no sum of W x and a part of its own.");
  gpu::Device& device = state_.device();
  const Tensor input = upload(x, slot.a.dim(1), "x"), d_output = upload(dy, slot.b.dim(0), "dy");
  check<UsageError>(input.dim(0) == d_output.dim(0), "trainer", "x has {} rows and dy {}.", input.dim(0), d_output.dim(0));
  const std::uint32_t rows = input.dim(0);
  const Tensor h = device.tensor(DType::f32, {rows, lora.rank}, "h"), dh = device.tensor(DType::f32, {rows, lora.rank}, "dh");
  const Tensor d_input = device.tensor(DType::f32, {rows, slot.a.dim(1)}, "d_x");
  const std::uint64_t room = lora_scratch(device, rows, slot.b.dim(0), slot.a.dim(1), lora.rank);
  const Tensor scratch = device.tensor(DType::f32, {static_cast<std::uint32_t>(std::max<std::uint64_t>(1, room))}, "lora scratch");
  gpu::Recorder recorder(device);
  recorder.clear(lora.grads);
  record(recorder, LoraDown{.x = {input, {}}, .a = slot.a, .h = h});
  record(recorder, LoraUpBackwardInput{.dy = {d_output, {}}, .b = slot.b, .dh = dh, .scaling = slot.scaling});
  record(recorder, LoraUpBackwardWeight{.dy = {d_output, {}}, .h = h, .db = slot.b_grad, .scaling = slot.scaling, .scratch = scratch});
  record(recorder, LoraDownBackwardWeight{.dh = dh, .x = {input, {}}, .da = slot.a_grad, .dropout = {}, .scratch = scratch});
  record(recorder, LoraDownBackwardInput{.dh = dh, .a = slot.a, .dx = d_input});
  recorder.submit();
  LoraGradients result = gradients(layer, projection);
  result.d_x = device.read<float>(d_input);
  return result;
}

LoraGradients Trainer::gradients(std::uint32_t layer, Projection projection) const {
  const LoraSlot& slot = slot_of(*state_.lora_mirror().on_device(), layer, projection);
  return {.d_a = state_.device().read<float>(slot.a_grad), .d_b = state_.device().read<float>(slot.b_grad), .d_x = {},
          .d_magnitude = slot.magnitude ? state_.device().read<float>(slot.magnitude_grad) : std::vector<float>()};
}

}  // namespace nibble
