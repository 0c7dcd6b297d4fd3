#include "nibble/model/golden.h"
#include "nibble/model/preference_parity.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble::preference_test {
namespace {

SafetensorsFile golden_file() { return SafetensorsFile(test::source_path("tests/golden/preference/golden.safetensors")); }

ModelState load_golden(ProductPath path) {
  return ModelState::load(test::device(), test::source_path("models/tiny-qwen3"),
                          {.path = path, .adapter = test::source_path("tests/golden/preference/adapter_nonzero")});
}

void expect_within(const ParityReport& report, const ParityBars& bars) {
  EXPECT_LE(report.worst_gradient().error, bars.gradient_error) << report.worst_gradient().name;
  EXPECT_GE(report.worst_direction().cosine, bars.gradient_cosine) << report.worst_direction().name;
  EXPECT_EQ(report.gradients.size(), 56u);  // 4 layers of 7 projections, two matrices each
}

TEST(PreferenceParity, EveryPathIsWithinTheBars) {
  const SafetensorsFile golden = golden_file();
  const std::uint32_t tokens = golden_tokens(golden);
  for (const ProductPath path : test::product_paths()) {
    const ModelState state = load_golden(path);
    for (const std::uint32_t head_chunk : {0u, 64u}) {  // one chunk of labels, and several
      if (head_chunk > 0 && path != ProductPath::f32) continue;
      SCOPED_TRACE(test::name_of(path) + " " + std::to_string(head_chunk));
      Model model(state, {.max_tokens = tokens, .max_labels = tokens, .head_chunk = head_chunk});
      const PreferenceParity report = compare_preferences_with_golden(model, golden);
      const ParityBars bars = parity_bars(path);
      expect_within(report.dpo, bars);
      expect_within(report.orpo, bars);
      EXPECT_LE(report.dpo.loss_error, bars.dpo_loss_error);
      EXPECT_LE(report.orpo.loss_error, bars.loss_error);
      EXPECT_LE(report.logps_error, bars.loss_error);
      EXPECT_TRUE(report.passes(bars));
    }
  }
}

// The whole loss through the model as a function of a few of the adapter's elements.
class PairLoss {
 public:
  PairLoss(PreferenceLoss kind)
      : state_(load_golden(ProductPath::f32)),
        rows_(read_golden_pairs(golden_file())),
        model_(state_,
               {.max_tokens = static_cast<std::uint32_t>(rows_.tokens.size()),
                .max_labels = static_cast<std::uint32_t>(rows_.labels.size())}) {
    const auto pairs = static_cast<std::uint32_t>(rows_.sides.size() / 2);
    std::vector<float> reference;
    const SafetensorsFile golden = golden_file();
    const auto chosen = golden.read_as_f32("chosen.reference_logps"), rejected = golden.read_as_f32("rejected.reference_logps");
    for (std::uint32_t pair = 0; pair < pairs; ++pair) reference.insert(reference.end(), {chosen[pair], rejected[pair]});
    // A beta that moves the sigmoid far from its middle, where the slope is 1/2 whatever the margin.
    op_ = {.kind = kind, .sides = test::upload_u32(rows_.sides), .reference = test::upload(reference, {2 * pairs}),
           .statistics = test::device().tensor(DType::f32, {pairs, preference_statistics}, "statistics"), .beta = 0.5f,
           .pair_factor = 0.25f, .token_factor = kind == PreferenceLoss::orpo ? 0.01f : 0.0f};
  }

  const LoraSlot& slot(std::uint32_t layer, Projection p) const { return state_.lora_mirror().on_device()->slot(layer, p); }

  void backward() {
    gpu::Recorder recorder(test::device());
    recorder.clear(state_.lora_mirror().on_device()->grads);
    model_.loss_and_gradients(recorder, model_.upload(recorder, rows_.stream()), {.preference = &op_});
  }

  double value() {
    gpu::Recorder recorder(test::device());
    Preference op = op_;
    op.loss = model_.loss(recorder, model_.upload(recorder, rows_.stream())).loss;
    record(recorder, op);
    recorder.submit();
    double loss = 0;
    for (const auto& pair : test::device().read<PreferenceStatistics>(op_.statistics)) {
      loss += double{op_.pair_factor} * double{pair.loss} + double{op_.token_factor} * double{pair.chosen_nll};
    }
    return loss;
  }

 private:
  ModelState state_;
  GoldenRows rows_;
  Model model_;
  Preference op_;
};

// The loss as f32 gives it errs by about 1e-6; over 2h = 0.02 that is 5e-5, and the third derivative adds about as much. The
// largest element of each matrix is taken, so that this is little beside it.
TEST(PreferenceGradients, EqualFiniteDifferencesThroughTheModel) {
  constexpr float h = 0.01f;
  for (const auto kind : {PreferenceLoss::dpo, PreferenceLoss::orpo}) {
    PairLoss loss(kind);
    loss.backward();
    for (const auto& [layer, projection] : {std::pair{0u, Projection::v}, {1u, Projection::down}, {3u, Projection::q}}) {
      const LoraSlot& slot = loss.slot(layer, projection);
      const auto gradient = test::download(slot.b_grad);
      const auto largest = std::max_element(gradient.begin(), gradient.end(),
                                            [](float a, float b) { return std::fabs(a) < std::fabs(b); });
      const auto index = static_cast<std::size_t>(largest - gradient.begin());
      const double slope = *largest;
      const auto values = test::download(slot.b);
      const auto loss_at = [&](float value) {
        auto moved = values;
        moved[index] = value;
        test::device().write(slot.b, std::as_bytes(std::span(moved)));
        return loss.value();
      };
      const double difference = (loss_at(values[index] + h) - loss_at(values[index] - h)) / (2 * double{h});
      test::device().write(slot.b, std::as_bytes(std::span(values)));
      EXPECT_NEAR(difference / slope, 1.0, 0.01) << name_of(kind) << " layer " << layer << ": " << slope;
    }
  }
}

}  // namespace
}  // namespace nibble::preference_test
