#include "nibble/weights/disk_layers.h"

#include "nibble/base/error.h"
#include "nibble/model/generator.h"
#include "nibble/model/memory_plan.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/load_check.h"
#include "nibble/weights/nf4_room.h"
#include "tests/model/numbered_layers.h"
#include "tests/model/two_passes.h"
#include "tests/support/disk.h"
#include "tests/support/gpu_test.h"

#include <algorithm>

namespace nibble::disk_layers_test {
namespace {

constexpr std::uint32_t tokens = 48;
constexpr auto resident = Residency::resident, streamed = Residency::streamed;

const fs::path experts = test::source_path("tests/golden/qwen3-moe/model"), bnb = test::source_path("tests/golden/bnb/model");

// Kinds of memory in which layers from a disk are on their way.
std::vector<gpu::HostMemory> room_memories() {
  auto all = test::host_memories();
  std::erase(all, gpu::HostMemory::direct);
  return all;
}

struct Setting {
  fs::path model = test::tiny;
  ProductPath path = ProductPath::f32;
  std::vector<Residency> residency = {};
  StreamOptions stream = {};
  ActivationChoices activations = {};
  bool dora = false;
};

class DiskStream : public testing::Test {
 protected:
  StreamOptions on_disk(std::optional<gpu::HostMemory> memory = {}, std::uint32_t slots = 2) const {
    return {.memory = memory, .slots = slots, .on_disk = true, .folder = folder.path()};
  }

  static ModelState state_of(const Setting& setting) {
    ModelState state = ModelState::load(test::device(), setting.model,
                                        {.path = setting.path, .lora = LoraConfig{.rank = 8, .lora_alpha = 16, .use_dora = setting.dora},
                                         .residency = setting.residency, .stream = setting.stream});
    test::fill_b(state);
    return state;
  }

  static test::TwoPasses result_of(const ModelState& state, const Setting& setting) {
    Model model(state, {.residency = setting.residency, .activations = setting.activations, .max_tokens = tokens, .max_labels = tokens});
    return test::two_passes(state, model, test::TwoSegments(tokens, 20, std::min(4000u, state.vocab_size())));
  }
  static test::TwoPasses result_of(const Setting& setting) { return result_of(state_of(setting), setting); }

  const test::FolderOnDisk folder;
};

TEST_F(DiskStream, AreTheSameBits) {
  for (const ProductPath path : test::product_paths()) {
    SCOPED_TRACE(test::name_of(path));
    const test::TwoPasses whole = result_of({.path = path});
    ASSERT_GT(*std::max_element(whole.gradients.begin(), whole.gradients.end()), 0.0f);
    for (const Activations choice : {Activations::keep, Activations::recompute_mlp, Activations::recompute}) {
      EXPECT_TRUE(whole == result_of({.path = path, .residency = spread_streamed(4, 4), .stream = on_disk(), .activations = {choice}}));
    }
    EXPECT_TRUE(whole == result_of({.path = path, .residency = {streamed, resident, streamed, streamed}, .stream = on_disk()}));
  }
}

TEST_F(DiskStream, AreTheSameBitsInEveryKindOfRooms) {
  for (const ProductPath path : test::product_paths()) {
    const test::TwoPasses whole = result_of({.path = path});
    for (const gpu::HostMemory memory : room_memories()) {
      SCOPED_TRACE(gpu::name_of(memory));
      for (const std::uint32_t slots : {2u, 3u}) {
        EXPECT_TRUE(whole == result_of({.path = path, .residency = spread_streamed(4, 4), .stream = on_disk(memory, slots)}));
      }
      for (const std::uint32_t count : {1u, 3u}) {
        EXPECT_TRUE(whole == result_of({.path = path, .residency = spread_streamed(4, count), .stream = on_disk(memory)}));
      }
    }
  }
}

// Mixtures, folders of bitsandbytes, double quantisation and DoRA.
TEST_F(DiskStream, HoldLayersOfEveryKind) {
  for (const fs::path& model : {test::tiny, experts, bnb}) {
    const std::uint32_t layers = read_model_config(model).num_layers;
    for (const bool double_quant : {false, true}) {
      SCOPED_TRACE(model.string());
      Setting setting{.model = model, .stream = {.double_quant = double_quant}};
      const test::TwoPasses whole = result_of(setting);
      setting.residency = spread_streamed(layers, layers);
      setting.stream = on_disk();
      setting.stream.double_quant = double_quant;
      const ModelState state = state_of(setting);
      EXPECT_TRUE(whole == result_of(state, setting));
      if (double_quant) continue;
      EXPECT_TRUE(check_loaded(test::device(), open_checkpoint(model, state.config()), state.weights()).passed());
    }
  }
  EXPECT_TRUE(result_of({.dora = true}) == result_of({.residency = spread_streamed(4, 4), .stream = on_disk(), .dora = true}));
}

TEST_F(DiskStream, GenerateTheSame) {
  std::vector<std::uint32_t> text;
  for (std::uint32_t i = 0; i < 30; ++i) text.push_back((i * 2654435761u >> 9) % 4000);
  const auto logits_of = [&](const Setting& setting) {
    const ModelState state = state_of(setting);
    Generator generator(state, {.capacity = 64, .sequences = 2});
    std::vector<float> all;
    for (std::size_t length : {20u, 21u, 22u, 30u}) {
      for (const float logit : generator.logits(std::span(text).first(length))) all.push_back(logit);
    }
    const Generator::Text both[] = {{0, text}, {1, std::span(text).first(25)}};
    for (const auto logits : generator.all_logits(both)) all.insert(all.end(), logits.begin(), logits.end());
    return all;
  };
  for (const ProductPath path : test::product_paths()) {
    const auto whole = logits_of({.path = path});
    EXPECT_EQ(whole, logits_of({.path = path, .residency = spread_streamed(4, 4), .stream = on_disk()}));
    EXPECT_EQ(whole, logits_of({.path = path, .residency = {resident, streamed, streamed, streamed}, .stream = on_disk()}));
  }
}

TEST_F(DiskStream, AreOnTheDiskAsTheyAreOnTheDevice) {
  for (const bool double_quant : {false, true}) {
    StreamOptions stream = on_disk();
    stream.double_quant = double_quant;
    const ModelState whole = state_of({.stream = {.double_quant = double_quant}}),
                     sent = state_of({.residency = {streamed, resident, streamed, streamed}, .stream = stream});
    for (std::uint32_t layer = 0; layer < 4; ++layer) {
      for (const Projection p : all_projections) {
        const Nf4Projection &one = whole.layers()[layer].at(p), &other = sent.layers()[layer].at(p);
        EXPECT_TRUE(one.packed == other.packed && one.absmax == other.absmax) << layer << ' ' << nibble::name_of(p);
        EXPECT_EQ(whole.weights().layers[layer].projection(p).largest, sent.weights().layers[layer].projection(p).largest);
      }
    }
  }
}

TEST_F(DiskStream, TakeThePlannedBytes) {
  const ModelConfig config = read_model_config(test::tiny);
  for (const gpu::HostMemory memory : room_memories()) {
    for (const std::uint32_t count : {1u, 3u, 4u}) {
      const Setting setting{.residency = spread_streamed(4, count), .stream = on_disk(memory)};
      const std::uint64_t before = test::device().memory().host;
      const ModelState state = state_of(setting);
      const MemoryPlan plan = plan_memory(test::device(), config, {.residency = setting.residency, .stream = setting.stream, .max_tokens = tokens,
                                                                   .max_labels = tokens}, {.rank = 8, .lora_alpha = 16});
      EXPECT_EQ(test::device().memory().host - before, plan.host_weights);
      EXPECT_EQ(plan.disk_weights, count * nf4_layer_bytes(config));
      EXPECT_EQ(fs::file_size(test::scratch_of(folder.path())), plan.disk_weights);
      EXPECT_EQ(plan.host_weights, std::min(count, 3u) * gpu::host_buffer_bytes(test::device().info(), memory, nf4_layer_bytes(config)));
    }
  }
  EXPECT_TRUE(test::scratch_of(folder.path()).empty()) << "it is gone with the state";
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

// A disk that fails while layers are read ends the pass with what it said, on the thread that computes.
TEST_F(DiskStream, SayWhatTheDiskSaid) {
  for (const gpu::HostMemory memory : room_memories()) {
    const Setting setting{.residency = spread_streamed(4, 4), .stream = on_disk(memory)};
    const ModelState state = state_of(setting);
    const fs::path file = test::scratch_of(folder.path());
    fs::resize_file(file, fs::file_size(file) / 2 + 1000);
    test::expect_error<DataError>([&] { result_of(state, setting); }, folder.path().string(), "The scratch file", "ends at byte");
    test::expect_error<DataError>([&] { result_of(state, setting); }, "ends at byte");
  }
}

TEST_F(DiskStream, CannotBeReadByKernels) {
  test::expect_error<UsageError>([&] { state_of({.residency = spread_streamed(4, 4), .stream = on_disk(gpu::HostMemory::direct)}); },
                                 "Kernels cannot read layers that lie on a disk");
}

// What is read and sent, by the order of layers alone.
class DiskOrder : public test::NumberedLayers {
 protected:
  static constexpr std::uint32_t layers = 9;

  void make(std::uint32_t slots, const std::vector<std::uint32_t>& which, gpu::HostMemory memory, bool carried = false) {
    config.num_layers = layers;
    stream = std::make_unique<LayerStream>(test::device(), config, slots, carried);
    stream->keep_on(std::make_unique<DiskLayers>(
        test::device(), DiskLayersOptions{.folder = folder.path(), .memory = memory, .layers = static_cast<std::uint32_t>(which.size()),
                                          .layer_bytes = nf4_layer_bytes(config)}));
    for (const std::uint32_t layer : which) {
      Nf4Room room(test::device(), config, *stream->disk(), stream->slot_room(), false);
      stream->add_on_disk(layer, write_number(room, layer));
    }
  }

  std::uint64_t reads() const { return stream->disk()->read_bytes() / nf4_layer_bytes(config); }

  const test::FolderOnDisk folder;
};

// The layers that come next are read before they are asked for, and where a pass turns none that a slot or a room still has.
TEST_F(DiskOrder, ReadsAheadAndNothingInVain) {
  std::vector<std::uint32_t> which(layers);
  for (std::uint32_t i = 0; i < layers; ++i) which[i] = i;
  for (const bool carried : {false, true}) {
    make(2, which, gpu::HostMemory::staged, carried);
    stream->go(LayerOrder::up);
    stream->projections(recorder, 0);
    EXPECT_GE(reads(), 3u) << "two more than was asked for";
    step(which);
    std::uint64_t before = reads();
    for (int i = 0; i < 3; ++i) step(which);
    // At each end of a step two layers are in slots and one in a room, or whatever the three rooms have; at the end of the last some are
    // read ahead.
    EXPECT_LE(reads() - before, 3 * 2 * (layers - 3u) + DiskLayers::most_rooms);
    EXPECT_GE(reads() - before, 3 * 2 * (layers - 2u - DiskLayers::most_rooms) - DiskLayers::most_rooms);
    expect_seen();
  }
}

TEST_F(DiskOrder, HoldsTheLayerThatIsAskedForInAnyOrder) {
  const std::vector<std::uint32_t> which{0, 1, 2, 4, 5, 6, 8};
  for (const gpu::HostMemory memory : room_memories()) {
    for (const bool carried : {false, true}) {
      for (const std::uint32_t slots : {2u, 3u}) {
        make(slots, which, memory, carried);
        use_at_random(which, slots);
      }
    }
  }
  expect_refused(3);
}

}  // namespace
}  // namespace nibble::disk_layers_test
