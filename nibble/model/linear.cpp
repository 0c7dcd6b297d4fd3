#include "nibble/model/linear.h"

namespace nibble {
namespace {

Dropout dropout_at(const LoraDropout& dropout, LinearSite site) {
  return {.probability = dropout.probability, .seed = dropout.seed,
          .stream = dropout_stream(site.layer, site.projection)};
}

const LoraSlot* slot_at(const LinearContext& context, LinearSite site) {
  if (!context.lora) return nullptr;
  const LoraSlot& slot = context.lora->slot(site.layer, site.projection);
  return slot.used() ? &slot : nullptr;
}

// y = x W^T
void record_base(gpu::Recorder& recorder, const LinearContext& context, const LinearForward& op) {
  const auto [layer, projection] = op.site;
  if (const Tensor w = context.frozen->transposed(layer, projection)) {
    record(recorder, ProductNN{.path = context.path, .x = op.x, .w = {w}, .y = op.y, .accumulate = op.accumulate});
    return;
  }
  const Weight weight = context.frozen->projection(recorder, layer, projection);
  record(recorder, ProductNT{.path = context.path, .x = op.x, .w = weight, .y = op.y, .accumulate = op.accumulate});
}

// dx = dy W
void record_base(gpu::Recorder& recorder, const LinearContext& context, const LinearBackward& op) {
  const auto [layer, projection] = op.site;
  if (const Tensor w = context.frozen->transposed(layer, projection)) {
    record(recorder, ProductNT{.path = context.path, .x = op.dy, .w = {w}, .y = op.dx, .accumulate = op.accumulate});
    return;
  }
  const Weight weight = context.frozen->projection(recorder, layer, projection);
  record(recorder, ProductNN{.path = context.path, .x = op.dy, .w = weight, .y = op.dx, .accumulate = op.accumulate});
}

}  // namespace

void record(gpu::Recorder& recorder, const LinearContext& context, const LinearForward& op) {
  record_base(recorder, context, op);
  const LoraSlot* slot = slot_at(context, op.site);
  if (!slot) return;
  record(recorder, LoraDown{.x = op.x, .a = slot->a, .h = op.h, .dropout = dropout_at(context.dropout, op.site)});
  record(recorder, LoraUp{.h = op.h, .b = slot->b, .y = op.y, .scaling = context.lora->scaling});
}

void record(gpu::Recorder& recorder, const LinearContext& context, const LinearBackward& op) {
  const LoraSlot* slot = slot_at(context, op.site);
  const Dropout dropout = dropout_at(context.dropout, op.site);
  if (op.dx) record_base(recorder, context, op);
  if (!slot) return;
  const float scaling = context.lora->scaling;
  record(recorder, LoraUpBackwardInput{.dy = op.dy, .b = slot->b, .dh = op.dh, .scaling = scaling});
  record(recorder, LoraUpBackwardWeight{.dy = op.dy, .h = op.h, .db = slot->b_grad, .scaling = scaling,
                                        .scratch = op.lora_scratch});
  record(recorder, LoraDownBackwardWeight{.dh = op.dh, .x = op.x, .da = slot->a_grad, .dropout = dropout,
                                          .scratch = op.lora_scratch});
  if (op.dx) record(recorder, LoraDownBackwardInput{.dh = op.dh, .a = slot->a, .dx = op.dx, .dropout = dropout});
}

}  // namespace nibble
