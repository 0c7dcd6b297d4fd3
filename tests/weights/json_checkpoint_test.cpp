#include "nibble/weights/json_checkpoint.h"

#include <bit>
#include <cmath>
#include <limits>

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/io/json.h"
#include "tests/support/files.h"

namespace nibble::json_checkpoint_test {
namespace {

using test::expect_error;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr auto of_a = {&LoraProjection::a, &LoraProjection::m_a, &LoraProjection::v_a};
constexpr auto of_b = {&LoraProjection::b, &LoraProjection::m_b, &LoraProjection::v_b};
constexpr auto matrices = {&LoraProjection::a,   &LoraProjection::b,   &LoraProjection::m_a,
                           &LoraProjection::v_a, &LoraProjection::m_b, &LoraProjection::v_b};

ModelConfig small_model() {
  return {.model_type = "qwen3",
          .hidden_size = 6,
          .num_layers = 2,
          .vocab_size = 8,
          .num_heads = 2,
          .num_kv_heads = 1,
          .head_dim = 4,
          .intermediate_size = 5};
}

std::vector<LoraLayer> random_layers(const ModelConfig& model, const LoraConfig& lora, std::uint64_t seed = 1) {
  Rng rng(seed);
  std::vector<LoraLayer> layers(model.num_layers);
  for (auto& layer : layers) {
    for (const Projection p : lora.target_modules) {
      const auto [out, in] = projection_dims(model, p);
      auto& adapter = layer.at(p);
      adapter = {.rank = lora.rank, .in_dim = in, .out_dim = out};
      for (const auto matrix : of_a) (adapter.*matrix).resize(std::size_t{lora.rank} * in);
      for (const auto matrix : of_b) (adapter.*matrix).resize(std::size_t{lora.rank} * out);
      for (const auto matrix : matrices) {
        for (auto& value : adapter.*matrix) value = rng.normal() * 0.01f;
      }
    }
  }
  return layers;
}

std::vector<std::uint32_t> bits(const std::vector<float>& values) {
  std::vector<std::uint32_t> result;
  for (const float value : values) result.push_back(std::bit_cast<std::uint32_t>(value));
  return result;
}

void expect_same(const std::vector<LoraLayer>& found, const std::vector<LoraLayer>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t layer = 0; layer < found.size(); ++layer) {
    for (const Projection p : all_projections) {
      const auto& a = found[layer].at(p);
      const auto& b = expected[layer].at(p);
      EXPECT_EQ(a.rank, b.rank);
      EXPECT_EQ(a.in_dim, b.in_dim);
      EXPECT_EQ(a.out_dim, b.out_dim);
      for (const auto matrix : matrices) EXPECT_EQ(bits(a.*matrix), bits(b.*matrix)) << layer << name_of(p);
    }
  }
}

TEST(JsonCheckpoint, ComesBackBitForBit) {
  const test::TemporaryFolder folder;
  const auto model = small_model();
  const LoraConfig lora{.rank = 3};
  auto layers = random_layers(model, lora);
  Rng rng(2);
  for (auto& value : layers[1].up.v_a) {  // any bits that are a finite number
    do {
      value = std::bit_cast<float>(rng.next_u32());
    } while (!std::isfinite(value));
  }
  const auto limits = std::numeric_limits<float>();
  layers[0].q.a = {0.0f,
                   -0.0f,
                   limits.max(),
                   -limits.max(),
                   limits.min(),
                   limits.denorm_min(),
                   -limits.denorm_min(),
                   1e-8f,
                   0.1f,
                   1.0f,
                   16777216.0f,
                   3.4e10f,
                   1e16f,
                   1e17f,
                   -5.0f,
                   1.00000012f,
                   9007199791611905.0f,
                   7e-10f};
  const auto path = save_json_checkpoint(
      folder / "new", {.step = 1234, .rank = 3, .alpha = 0.1, .loss = 1.0 / 3, .hidden_size = 6}, layers);
  EXPECT_EQ(path, folder / "new/lora-checkpoint-step1234.json");
  const auto back = load_json_checkpoint(path, model, lora);
  EXPECT_EQ(back.header.step, 1234);
  EXPECT_EQ(back.header.rank, 3);
  EXPECT_EQ(back.header.alpha, 0.1);
  EXPECT_EQ(back.header.loss, 1.0 / 3);
  EXPECT_EQ(back.header.hidden_size, 6);
  expect_same(back.layers, layers);
}

TEST(JsonCheckpoint, IsWrittenInTheOrderOfTheForm) {
  const test::TemporaryFolder folder;
  const LoraConfig lora{.rank = 1, .target_modules = {Projection::k}};
  auto model = small_model();
  model.num_layers = 1;
  auto layers = random_layers(model, lora);
  for (const auto matrix : matrices) layers[0].k.*matrix = {1, 0, -0.0f, 0.5f, 1e-8f, 1e30f};
  for (const auto matrix : of_b) (layers[0].k.*matrix).resize(4);
  const auto path =
      save_json_checkpoint(folder.path(), {.step = 7, .rank = 1, .alpha = 2, .loss = 0.25, .hidden_size = 6}, layers);
  const std::string wide = "[1,0,-0.0,0.5,1e-08,1e+30]", narrow = "[1,0,-0.0,0.5]";
  EXPECT_EQ(test::slurp(path),
            R"({"step":7,"rank":1,"alpha":2,"loss":0.25,"hidden_size":6,"num_layers":1,"layers":[{"k":{"a":)" + wide +
                ",\"b\":" + narrow + ",\"m_a\":" + wide + ",\"v_a\":" + wide + ",\"m_b\":" + narrow +
                ",\"v_b\":" + narrow + R"(,"rank":1,"in_dim":6,"out_dim":4}}]})" + "\n");
  expect_same(load_json_checkpoint(path, model, lora).layers, layers);
}

TEST(JsonCheckpoint, LeavesOutWhatIsNotAdapted) {
  const test::TemporaryFolder folder;
  const LoraConfig lora{.rank = 2, .target_modules = {Projection::v, Projection::down}};
  const auto layers = random_layers(small_model(), lora);
  const auto path = save_json_checkpoint(folder.path(), {.rank = 2, .hidden_size = 6}, layers);
  const auto json = read_json_file(path);
  EXPECT_EQ(json["layers"][1].size(), 2);
  const auto back = load_json_checkpoint(path, small_model(), lora);
  expect_same(back.layers, layers);
  EXPECT_FALSE(back.layers[0].q.used());
}

// A model of one layer with one adapted projection, as text to be changed.
class HandWritten : public testing::Test {
 protected:
  HandWritten() { model_.num_layers = 1; }

  JsonCheckpoint load(const std::string& text) {
    return load_json_checkpoint(folder_.write("c.json", text), model_, lora_);
  }
  std::string with(const std::string& from, const std::string& to) const {
    std::string text = text_;
    const auto at = text.find(from);
    EXPECT_NE(at, text.npos) << from;
    return text.replace(at, from.size(), to);
  }
  template <typename... Parts>
  void refuse(const std::string& text, const Parts&... parts) {
    expect_error<DataError>([&] { load(text); }, "c.json", parts...);
  }

  test::TemporaryFolder folder_;
  ModelConfig model_ = small_model();
  LoraConfig lora_{.rank = 1, .target_modules = {Projection::k}};
  std::string text_ = R"({"step":200,"rank":1,"alpha":32.0,"loss":2.125,"hidden_size":6,"num_layers":1,"layers":[
    {"k":{"a":[1e-8,0.1,1.0,3.4028235e38,-0.0,1e-45],"b":[0.0,0.0,1.1754944e-38,-7],
          "m_a":[0.0,0.0,0.0,0.0,0.0,0.5],"v_a":[0.0,0.0,0.0,0.0,0.0,0.25],"m_b":[1,2,3,4],"v_b":[5,6,7,8],
          "rank":1,"in_dim":6,"out_dim":4}}]})";
};

TEST_F(HandWritten, IsReadWithNumbersAsRustPrintsThem) {
  const auto back = load(text_);
  EXPECT_EQ(back.header.step, 200);
  EXPECT_EQ(back.header.alpha, 32.0);
  EXPECT_EQ(back.header.loss, 2.125);
  const auto& k = back.layers[0].k;
  EXPECT_EQ(bits(k.a), bits({1e-8f, 0.1f, 1.0f, std::numeric_limits<float>::max(), -0.0f,
                             std::numeric_limits<float>::denorm_min()}));
  EXPECT_EQ(k.b, (std::vector<float>{0.0f, 0.0f, std::numeric_limits<float>::min(), -7.0f}));
  EXPECT_EQ(k.v_b, (std::vector<float>{5, 6, 7, 8}));
}

TEST_F(HandWritten, IsReadWithKeysInAnyOrder) {
  // nlohmann's objects come out sorted: "layers" before "rank", and "in_dim" before "m_a".
  const auto sorted = Json::parse(text_).dump(1, '\t');
  ASSERT_LT(sorted.find("layers"), sorted.find("\"loss\""));
  expect_same(load(sorted).layers, load(text_).layers);
}

TEST_F(HandWritten, RoundsADecimalOnce) {
  // Just above the midpoint of 1 and the next f32: f64 cannot tell it from the midpoint, which goes to even.
  EXPECT_EQ(load(with("1.0", "1.0000000596046447753906250001")).layers[0].k.a[2], std::nextafter(1.0f, 2.0f));
  EXPECT_EQ(load(with("1.0", "1e-60")).layers[0].k.a[2], 0.0f);
}

TEST_F(HandWritten, NamesAMismatch) {
  refuse(with("\"hidden_size\":6", "\"hidden_size\":8"), "hidden_size", "has 8", "have 6");
  refuse(with("\"num_layers\":1", "\"num_layers\":36"), "num_layers", "has 36", "have 1");
  refuse(with("\"rank\":1,\"alpha\"", "\"rank\":16,\"alpha\""), "c.json: rank", "has 16", "have 1");
  refuse(with("\"rank\":1,\"in", "\"rank\":2,\"in"), "layers[0].k.rank", "has 2", "have 1");
  refuse(with("\"in_dim\":6", "\"in_dim\":7"), "layers[0].k.in_dim", "has 7", "have 6");
  refuse(with("\"out_dim\":4", "\"out_dim\":4.5"), "layers[0].k.out_dim", "has 4.5", "have 4");
  refuse(with("[5,6,7,8]", "[5,6,7]"), "layers[0].k.v_b", "has 3 values", "make it 4");
  refuse(with("[5,6,7,8]", "[5,6,7,8,9]"), "layers[0].k.v_b[4]", "goes on", "make it 4");
  refuse(with("\"layers\":[", "\"layers\":[ {\"k\":1},"), "layers[0].k", "Found 1", "an object");
  model_.num_layers = 2;
  refuse(with("\"num_layers\":1", "\"num_layers\":2"), "layers", "has 1 layers", "make it 2");
  model_.num_layers = 1;
  lora_.target_modules = {Projection::q};
  refuse(text_, "layers[0]", "\"k\" has no place", "the keys are q");
  lora_.target_modules = {Projection::q, Projection::k};
  refuse(text_, "layers[0]", "\"q\" is missing");
}

TEST_F(HandWritten, NamesWhatIsNoCheckpoint) {
  refuse("[1, 2]", "Found a list", "the object of a checkpoint");
  refuse("7", "Found 7", "the object of a checkpoint");
  refuse("{}", "\"step\" is missing");
  refuse(R"({"format": "pt"})", "\"format\" has no place", "step, rank");
  refuse(with("\"loss\":2.125,", ""), "\"loss\" is missing");
  refuse(with("\"loss\":2.125,", "\"loss\":2.125,\"loss\":2,"), "\"loss\" comes twice");
  refuse(with("\"m_b\":[1,2,3,4],", ""), "layers[0].k", "\"m_b\" is missing");
  refuse(with("0.25]", "0.25],\"v_c\":[]"), "layers[0].k", "\"v_c\" has no place");
  refuse(with("{\"k\":{", "{\"k\":[{"), "layers[0].k", "a list", "a projection");
  refuse(with("\"layers\":[", "\"layers\":{"), "layers", "an object", "a list of layers");
  refuse(with("\"step\":200", "\"step\":-1"), "step", "Found -1", "an integer");
  refuse(with("\"alpha\":32.0", "\"alpha\":\"32\""), "alpha", "a string", "a finite number");
  refuse(with("\"a\":[", "\"a\":[["), "layers[0].k.a[0]", "a list", "a finite number");
  refuse(std::string(100'000, '['), "a list");
  refuse(with("\"step\"", std::string(200'000, ' ') + "\"step\""), "longer than 65536 bytes");
  refuse(with("0.25", "0." + std::string(200'000, '2')), "longer than 65536 bytes");
}

TEST_F(HandWritten, NamesValuesThatAreNotFinite) {
  refuse(with("0.25", "null"), "layers[0].k.v_a[5]", "null", "a finite number");
  refuse(with("0.25", "1e39"), "layers[0].k.v_a[5]", "1e+39", "range of f32");
  refuse(with("0.25", "1e999"), "layers[0].k.v_a[5]", "range of f64");
  refuse(with("0.25", "NaN"), "layers[0].k.v_a[5]", "not valid JSON");
  refuse(with("2.125", "null"), "loss", "null", "a finite number");
}

TEST_F(HandWritten, NamesWhereItIsCutOff) {
  refuse("", "cut off", "at byte 0");
  refuse(text_.substr(0, text_.find("0.25") + 3), "layers[0].k.v_a[", "cut off");
  refuse(text_.substr(0, text_.size() - 1), "cut off");
  refuse(text_ + "x", "not valid JSON", fmt::format("at byte {}", text_.size() + 1));
  expect_error<DataError>([&] { load_json_checkpoint(folder_ / "absent.json", model_, lora_); }, "absent.json");
}

TEST_F(HandWritten, WithBytesChangedIsReadOrRefused) {
  Rng rng(4);
  int read = 0, refused = 0;
  static constexpr std::string_view likely = "{}[]:,\"0123456789-.eE\\ntf ";
  for (int i = 0; i < 3'000; ++i) {
    std::string text = text_;
    const std::size_t at = rng.below(static_cast<std::uint32_t>(text.size()));
    switch (rng.below(4)) {
      case 0: text[at] = likely[rng.below(static_cast<std::uint32_t>(likely.size()))]; break;
      case 1: text[at] = static_cast<char>(text[at] ^ (1 << rng.below(8))); break;
      case 2: text.erase(at, 1 + rng.below(20)); break;
      default: text.insert(at, text.substr(at, rng.below(20))); break;
    }
    try {
      const auto back = load(text);
      ASSERT_EQ(back.layers.size(), 1);
      for (const auto matrix : of_a) ASSERT_EQ((back.layers[0].k.*matrix).size(), 6);
      for (const auto matrix : of_b) ASSERT_EQ((back.layers[0].k.*matrix).size(), 4);
      ++read;
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(read, 200);
  EXPECT_GT(refused, 1'500);
}

TEST(JsonCheckpoint, IsNotWrittenWithWhatCannotBeRead) {
  const test::TemporaryFolder folder;
  const LoraConfig lora{.rank = 2};
  const auto good = random_layers(small_model(), lora);
  const auto refuse = [&](const JsonCheckpointHeader& header, const std::vector<LoraLayer>& layers, auto... parts) {
    expect_error<Error>([&] { save_json_checkpoint(folder / "new", header, layers); }, parts...);
    EXPECT_TRUE(fs::is_empty(folder.path()));
  };
  auto layers = good;
  layers[1].gate.m_b[3] = std::nanf("");
  refuse({.rank = 2}, layers, "layers[1].gate.m_b[3] is nan");
  layers = good;
  layers[0].o.a[0] = -infinity;
  refuse({.rank = 2}, layers, "layers[0].o.a[0] is -inf");
  layers = good;
  layers[0].o.v_b.pop_back();
  refuse({.rank = 2}, layers, "layers[0].o.v_b has 11 values", "make it 12");
  refuse({.rank = 3}, good, "layers[0].q has the rank 2", "has 3");
  refuse({.rank = 2, .loss = std::nan("")}, good, "loss is nan");
}

TEST(JsonCheckpoint, ThatCannotBeFinishedLeavesNothing) {
  const test::TemporaryFolder folder;
  fs::create_directory(folder / "lora-checkpoint-step0.json");  // in the way of the last rename
  expect_error<DataError>(
      [&] { save_json_checkpoint(folder.path(), {.rank = 2}, random_layers(small_model(), {.rank = 2})); },
      "lora-checkpoint-step0.json");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

}  // namespace
}  // namespace nibble::json_checkpoint_test
