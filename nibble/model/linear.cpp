#include "nibble/model/linear.h"

#include "nibble/kernels/product_nf4.h"

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

// Whether products of the site read NF4 as they go. A processor does that faster than it reads decoded values.
bool reads_nf4(gpu::Recorder& recorder, const LinearContext& context, LinearSite site) {
  if (context.path != ProductPath::f32 || context.frozen->transposed(site.layer, site.projection)) return false;
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

void record(gpu::Recorder& recorder, const LinearContext& context, const LinearNarrow& op) {
  const LoraSlot* slot = slot_at(context, op.site);
  if (slot) record(recorder, LoraDown{.x = op.x, .a = slot->a, .h = op.h, .dropout = dropout_at(context.dropout, op.site)});
}

void record(gpu::Recorder& recorder, const LinearContext& context, const LinearForward& op) {
  const LoraSlot* slot = slot_at(context, op.site);
  record(recorder, context, LinearNarrow{.site = op.site, .x = op.x, .h = op.h});
  const bool direct = reads_nf4(recorder, context, op.site), term = direct && takes_term(slot);
  if (direct) {
    Nf4Product product{.x = op.x.data, .w = context.frozen->nf4(recorder, op.site.layer, op.site.projection), .y = op.y,
                       .accumulate = op.accumulate};
    if (term) product = with_term(product, op.h, slot->b, slot->scaling);
    record_nt(recorder, product);
  } else {
    record_base(recorder, context, op);
  }
  if (slot && !term) record(recorder, LoraUp{.h = op.h, .b = slot->b, .y = op.y, .scaling = slot->scaling});
}

void record(gpu::Recorder& recorder, const LinearContext& context, const LinearBackward& op) {
  const LoraSlot* slot = slot_at(context, op.site);
  const Dropout dropout = dropout_at(context.dropout, op.site);
  const float scaling = slot ? slot->scaling : 1.0f;
  if (slot) record(recorder, LoraUpBackwardInput{.dy = op.dy, .b = slot->b, .dh = op.dh, .scaling = scaling});
  const bool direct = op.dx && reads_nf4(recorder, context, op.site);
  const bool term = direct && takes_term(slot) && dropout.probability == 0;
  if (direct) {
    Nf4Product product{.x = op.dy.data, .w = context.frozen->nf4(recorder, op.site.layer, op.site.projection), .y = op.dx,
                       .accumulate = op.accumulate};
    if (term) product = with_term(product, op.dh, slot->a, 1.0f);
    record_nn(recorder, product);
  } else if (op.dx) {
    record_base(recorder, context, op);
  }
  if (!slot) return;
  record(recorder, LoraUpBackwardWeight{.dy = op.dy, .h = op.h, .db = slot->b_grad, .scaling = scaling,
                                        .scratch = op.lora_scratch});
  record(recorder, LoraDownBackwardWeight{.dh = op.dh, .x = op.x, .da = slot->a_grad, .dropout = dropout,
                                          .scratch = op.lora_scratch});
  if (op.dx && !term) record(recorder, LoraDownBackwardInput{.dh = op.dh, .a = slot->a, .dx = op.dx, .dropout = dropout});
}

}  // namespace nibble
