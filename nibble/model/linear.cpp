#include "nibble/model/linear.h"

#include "nibble/kernels/dora.h"
#include "nibble/kernels/product_nf4.h"

namespace nibble {
namespace {

Dropout dropout_at(const LoraDropout& dropout, LinearSite site) {
  return {.probability = dropout.probability, .seed = dropout.seed,
          .stream = dropout_stream(site.layer, site.projection), .first_row = dropout.first_row};
}

const LoraSlot* slot_at(const LinearContext& context, LinearSite site) {
  if (!context.lora) return nullptr;
  const LoraSlot& slot = context.lora->slot(site.layer, site.projection);
  return slot.used() ? &slot : nullptr;
}

// Caches know nothing of gains.
Tensor transposed(const LinearContext& context, LinearSite site) {
  return context.dora ? Tensor{} : context.frozen->transposed(site.layer, site.projection);
}

// Whether products of the site read NF4 as they go. A processor does that faster than it reads decoded values.
bool reads_nf4(gpu::Recorder& recorder, const LinearContext& context, LinearSite site) {
  if (context.path != ProductPath::f32 || transposed(context, site)) return false;
  const auto [outputs, inputs] = context.frozen->dims(site.layer, site.projection);
  return nf4_product_fits(recorder.device(), outputs, inputs);
}

// Such products add up an adapter's second product in their own sums, so that y is not read and written once more.
bool takes_term(const LoraSlot* slot) { return slot && slot->a.dim(0) % 4 == 0; }

Nf4Product with_term(Nf4Product product, const Tensor& left, const Tensor& right, float scaling) {
  product.left = left;
  product.right = right;
  product.scaling = scaling;
  return product;
}

// y = x W^T
void record_base(gpu::Recorder& recorder, const LinearContext& context, const LinearForward& op) {
  const auto [layer, projection] = op.site;
  if (const Tensor w = transposed(context, op.site)) {
    record(recorder, ProductNN{.path = context.path, .x = op.x, .w = {w}, .y = op.y, .accumulate = op.accumulate});
    return;
  }
  const Weight weight = context.frozen->projection(recorder, layer, projection, context.dora);
  record(recorder, ProductNT{.path = context.path, .x = op.x, .w = weight, .y = op.y, .accumulate = op.accumulate});
}

// dx = dy W
void record_base(gpu::Recorder& recorder, const LinearContext& context, const LinearBackward& op) {
  const auto [layer, projection] = op.site;
  if (const Tensor w = transposed(context, op.site)) {
    record(recorder, ProductNT{.path = context.path, .x = op.dy, .w = {w}, .y = op.dx, .accumulate = op.accumulate});
    return;
  }
  const Weight weight = context.frozen->projection(recorder, layer, projection, context.dora);
  record(recorder, ProductNN{.path = context.path, .x = op.dy, .w = weight, .y = op.dx, .accumulate = op.accumulate});
}

// The forward pass with h as it is.
void record_wide(gpu::Recorder& recorder, const LinearContext& context, const LinearForward& op) {
  const LoraSlot* slot = slot_at(context, op.site);
  const bool direct = reads_nf4(recorder, context, op.site), term = direct && takes_term(slot);
  if (direct) {
    Nf4Product product{.x = op.x.data, .w = context.frozen->nf4(recorder, op.site.layer, op.site.projection, context.dora), .y = op.y,
                       .accumulate = op.accumulate};
    if (term) product = with_term(product, op.h, slot->b_read, slot->scaling);
    record_nt(recorder, product);
  } else {
    record_base(recorder, context, op);
  }
  if (slot && !term) record(recorder, LoraUp{.h = op.h, .b = slot->b_read, .y = op.y, .scaling = slot->scaling});
}

// What gains change of the gradients: db_room holds that of gain * B.
void record_dora(gpu::Recorder& recorder, const LinearContext& context, const LinearBackward& op, const LoraSlot& slot, const Tensor& db_read) {
  record(recorder, DoraGradientB{.db_read = db_read, .gain = slot.gain, .db = slot.b_grad});
  Tensor y = op.dora.y;
  if (!y) {
    y = op.dora.y_room;
    record_wide(recorder, context, {.site = op.site, .x = op.x, .y = y, .h = op.h});
  }
  record(recorder, DoraGradientMagnitude{.dy = op.dy, .y = {y, {}}, .bias = op.dora.bias, .bias_first = op.dora.bias_first,
                                         .magnitude = slot.magnitude, .d_magnitude = slot.magnitude_grad});
}

}  // namespace

void record(gpu::Recorder& recorder, const LinearContext& context, const LinearNarrow& op) {
  const LoraSlot* slot = slot_at(context, op.site);
  if (slot) record(recorder, LoraDown{.x = op.x, .a = slot->a, .h = op.h, .dropout = dropout_at(context.dropout, op.site)});
}

void record(gpu::Recorder& recorder, const LinearContext& context, const LinearForward& op) {
  record(recorder, context, LinearNarrow{.site = op.site, .x = op.x, .h = op.h});
  record_wide(recorder, context, op);
}

void record(gpu::Recorder& recorder, const LinearContext& context, const LinearBackward& op) {
  const LoraSlot* slot = slot_at(context, op.site);
  const Dropout dropout = dropout_at(context.dropout, op.site);
  const float scaling = slot ? slot->scaling : 1.0f;
  if (slot) record(recorder, LoraUpBackwardInput{.dy = op.dy, .b = slot->b_read, .dh = op.dh, .scaling = scaling});
  const bool direct = op.dx && reads_nf4(recorder, context, op.site);
  const bool term = direct && takes_term(slot) && dropout.probability == 0;
  if (direct) {
    Nf4Product product{.x = op.dy.data, .w = context.frozen->nf4(recorder, op.site.layer, op.site.projection, context.dora), .y = op.dx,
                       .accumulate = op.accumulate};
    if (term) product = with_term(product, op.dh, slot->a, 1.0f);
    record_nn(recorder, product);
  } else if (op.dx) {
    record_base(recorder, context, op);
  }
  if (!slot) return;
  Tensor db = slot->b_grad;
  if (context.dora) {
    db = op.dora.db_room.view({slot->b.dim(0), slot->b.dim(1)});
    recorder.clear(db);
  }
  record(recorder, LoraUpBackwardWeight{.dy = op.dy, .h = op.h, .db = db, .scaling = scaling, .scratch = op.lora_scratch});
  if (context.dora) record_dora(recorder, context, op, *slot, db);
  record(recorder, LoraDownBackwardWeight{.dh = op.dh, .x = op.x, .da = slot->a_grad, .dropout = dropout,
                                          .scratch = op.lora_scratch});
  if (op.dx && !term) record(recorder, LoraDownBackwardInput{.dh = op.dh, .a = slot->a, .dx = op.dx, .dropout = dropout});
}

}  // namespace nibble
