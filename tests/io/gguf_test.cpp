#include "nibble/io/gguf.h"

#include <cstring>
#include <functional>

#include "nibble/base/error.h"
#include "tests/support/files.h"
#include "tests/support/mutated.h"

namespace nibble::gguf_test {
namespace {

using test::expect_error;

// Bytes of a file, written by hand.
class Bytes {
 public:
  template <typename T>
  Bytes& add(T value) {
    const std::size_t at = text.size();
    text.resize(at + sizeof value);
    std::memcpy(text.data() + at, &value, sizeof value);
    return *this;
  }
  Bytes& add_text(std::string_view value) {
    add<std::uint64_t>(value.size());
    text += value;
    return *this;
  }
  static Bytes header(std::uint64_t tensors, std::uint64_t keys, std::uint32_t version = 3) {
    Bytes bytes;
    bytes.text = "GGUF";
    return bytes.add(version).add(tensors).add(keys);
  }
  Bytes& key_u32(std::string_view key, std::uint32_t value) { return add_text(key).add<std::uint32_t>(4).add(value); }
  Bytes& tensor(std::string_view name, std::vector<std::uint64_t> shape, std::uint32_t type, std::uint64_t offset) {
    add_text(name).add(static_cast<std::uint32_t>(shape.size()));
    for (const auto size : shape) add(size);
    return add(type).add(offset);
  }
  // Fills up to a multiple of `alignment`, then adds so many bytes of data.
  std::string with_data(std::size_t bytes, std::size_t alignment = 32) const {
    std::string result = text;
    result.resize((result.size() + alignment - 1) / alignment * alignment + bytes, '\1');
    return result;
  }

  std::string text;
};

class GgufTest : public testing::Test {
 protected:
  template <typename... Parts>
  void refuse(const std::string& bytes, const Parts&... parts) {
    const auto path = folder_.write("m.gguf", bytes);
    expect_error<DataError>([&] { GgufFile file(path); }, path.string(), parts...);
  }

  test::TemporaryFolder folder_;
};

GgufMetadata every_kind() {
  return {{"general.architecture", std::string("qwen3")},
          {"a.count", 7u},
          {"a.number", 0.1f},
          {"a.flag", true},
          {"a.empty", std::string()},
          {"a.list", std::vector<std::int32_t>{-1, 2}},
          {"a.texts", std::vector<std::string>{"x", "Ġé"}}};
}

TEST_F(GgufTest, WhatIsWrittenIsRead) {
  const fs::path path = folder_ / "m.gguf";
  GgufWriter writer(path, every_kind(),
                    {{"odd", GgmlType::f32, {3}}, {"m", GgmlType::q8_0, {2, 32}}, {"h", GgmlType::bf16, {2, 1}}});
  std::vector<std::byte> odd(12, std::byte{1}), matrix(68, std::byte{2}), halves(4, std::byte{3});
  writer.append(odd);
  writer.append(std::span(matrix).first(5));
  writer.append(std::span(matrix).subspan(5));
  EXPECT_FALSE(path_exists(path));
  expect_error<Error>([&] { writer.finish(); }, "1 tensors still missing");
  expect_error<Error>([&] { writer.append(std::vector<std::byte>(5)); }, "5 bytes");
  writer.append(halves);
  writer.finish();

  const GgufFile file(path);
  const JsonObject metadata(file.metadata(), "m");
  EXPECT_EQ(metadata.string("general.architecture"), "qwen3");
  EXPECT_EQ(metadata.integer("a.count", {}), 7);
  EXPECT_EQ(static_cast<float>(metadata.number("a.number", {0, 1})), 0.1f);
  EXPECT_TRUE(metadata.boolean("a.flag"));
  EXPECT_EQ(metadata.string("a.empty"), "");
  EXPECT_EQ(file.metadata()["a.list"], Json::array({-1, 2}));
  EXPECT_EQ(metadata.strings("a.texts"), (std::vector<std::string>{"x", "Ġé"}));
  const GgufTensor& m = file.tensors().at("m");
  EXPECT_EQ(m.shape, (Shape{2, 32}));
  EXPECT_EQ(m.info().name, "Q8_0");
  EXPECT_EQ(m.offset % 32, 0);
  std::vector<std::byte> got(68);
  file.read(m, 0, got);
  EXPECT_EQ(got, matrix);
  file.read(file.tensors().at("h"), 2, std::span(got).first(2));
  EXPECT_EQ(got[1], std::byte{3});
  expect_error<Error>([&] { file.read(m, 60, got); }, "Bytes 60 to 128");
}

TEST_F(GgufTest, ReadsVersionTwoAndAnAlignmentOfItsOwn) {
  const auto bytes =
      Bytes::header(1, 1, 2).key_u32("general.alignment", 64).tensor("t", {2, 3}, 0, 64).with_data(64 + 24, 64);
  const GgufFile file(folder_.write("m.gguf", bytes));
  EXPECT_EQ(file.tensors().at("t").shape, (Shape{3, 2}));
  EXPECT_EQ(file.tensors().at("t").offset % 64, 0);
}

TEST_F(GgufTest, RefusesOtherFilesAndVersions) {
  refuse("GG", "was the download cut short");
  refuse("PK\3\4 and more bytes follow here", "no GGUF file");
  refuse(Bytes::header(0, 0, 1).text, "version 1");
  refuse(Bytes::header(0, 0, 3u << 24).text, "big-endian");
  EXPECT_FALSE(is_gguf(test::TemporaryFolder().path()));
  EXPECT_FALSE(is_gguf(folder_ / "none.gguf"));
  EXPECT_FALSE(is_gguf(folder_.write("text", "GG")));
  EXPECT_TRUE(is_gguf(folder_.write("blob", Bytes::header(0, 0).text)));
}

TEST_F(GgufTest, RefusesCountsAndLengthsBeyondTheFile) {
  refuse(Bytes::header(UINT64_MAX, 0).text, "claims 18446744073709551615 tensors");
  refuse(Bytes::header(0, UINT64_MAX).text, "keys; at most");
  refuse(Bytes::header(0, 2).key_u32("a", 1).text, "goes on beyond byte");
  refuse(Bytes::header(0, 1).add<std::uint64_t>(UINT64_MAX).text, "A key claims 18446744073709551615 bytes");
  refuse(Bytes::header(0, 1).add_text("k").add<std::uint32_t>(8).add<std::uint64_t>(1 << 20).text,
         "The value of \"k\" claims 1048576 bytes");
  refuse(
      Bytes::header(0, 1).add_text("k").add<std::uint32_t>(9).add<std::uint32_t>(4).add<std::uint64_t>(1ull << 62).text,
      "a list of", "\"k\"");
  std::string many = Bytes::header(0, 1)
                         .add_text("k")
                         .add<std::uint32_t>(9)
                         .add<std::uint32_t>(0)
                         .add<std::uint64_t>((1 << 24) + 1)
                         .text;
  refuse(many + std::string((1 << 24) + 1, 'x'), "have more than 16777216");
}

TEST_F(GgufTest, RefusesMetadataThatIsWrong) {
  refuse(Bytes::header(0, 2).key_u32("a", 1).key_u32("a", 2).text, "The key \"a\" comes twice");
  refuse(Bytes::header(0, 1).add_text("k").add<std::uint32_t>(13).add<std::uint64_t>(0).text, "type 13");
  refuse(Bytes::header(0, 1).add_text("k").add<std::uint32_t>(9).add<std::uint32_t>(9).add<std::uint64_t>(0).text,
         "list of lists");
  refuse(Bytes::header(0, 1).add_text("k").add<std::uint32_t>(8).add_text("\xC0\x80").text, "not UTF-8");
  refuse(Bytes::header(0, 1).key_u32("with space", 1).text, "plain ASCII");
  refuse(Bytes::header(0, 1).key_u32("general.alignment", 48).text, "power of two");
  refuse(Bytes::header(0, 1).key_u32("general.alignment", 0).text, "general.alignment", "from 1 to");
}

TEST_F(GgufTest, RefusesTensorsThatAreWrong) {
  const auto with = [](std::vector<std::uint64_t> shape, std::uint32_t type, std::uint64_t offset, std::size_t data) {
    return Bytes::header(1, 0).tensor("t", std::move(shape), type, offset).with_data(data);
  };
  refuse(with({}, 0, 0, 0), "0 dimensions");
  refuse(with({1, 1, 1, 1, 1}, 0, 0, 4), "5 dimensions");
  refuse(with({0}, 0, 0, 0), "size of 0");
  refuse(with({1ull << 40, 1ull << 40}, 0, 0, 0), "more values than can be counted");
  refuse(with({1}, 4, 0, 4), "type number 4");
  refuse(with({33}, 8, 0, 68), "no whole blocks of 32 (Q8_0)");
  refuse(with({8}, 0, 8, 64), "no multiple of 32");
  refuse(with({8}, 0, 0, 31), "has 32 bytes from 0", "there are 31");
  refuse(with({8}, 0, 1ull << 63, 32), "was the download cut short");
  refuse(Bytes::header(2, 0).tensor("a", {16}, 0, 0).tensor("b", {16}, 0, 32).with_data(96), "b overlaps");
  refuse(Bytes::header(2, 0).tensor("a", {8}, 0, 0).tensor("a", {8}, 0, 32).with_data(64), "The tensor a comes twice");
}

// A model of three parts, each with a tensor of a value of its own.
class SplitGguf : public testing::Test {
 protected:
  using Change = std::function<void(GgufMetadata&)>;

  SplitGguf() {
    for (std::uint32_t part = 0; part < 3; ++part) write(part);
  }
  fs::path path_of(std::uint32_t part) const { return folder_ / fmt::format("m-{:05}-of-00003.gguf", part + 1); }
  void write(std::uint32_t part, const Change& change = {}) const {
    GgufMetadata metadata{{"split.no", part}, {"split.count", 3u}, {"split.tensors.count", 3u}};
    if (part == 0) metadata.emplace_back("general.architecture", std::string("qwen3"));
    if (change) change(metadata);
    GgufWriter writer(path_of(part), metadata, {{fmt::format("t{}", part), GgmlType::f32, {8}}});
    writer.append(std::vector<std::byte>(32, static_cast<std::byte>(part + 1)));
    writer.finish();
  }
  void set(GgufMetadata& metadata, const std::string& key, std::uint32_t value) const {
    for (auto& [name, old] : metadata) {
      if (name == key) old = value;
    }
  }

  const test::TemporaryFolder folder_;
};

TEST_F(SplitGguf, IsOneModel) {
  folder_.write("mmproj-m.gguf", "another");
  for (const fs::path& path : {path_of(0), folder_.path()}) {
    EXPECT_TRUE(is_gguf(path));
    EXPECT_EQ(gguf_model_name(path), "m");
    const GgufFile file(path);
    EXPECT_EQ(file.path(), path_of(0));
    EXPECT_EQ(file.files().size(), 3u);
    EXPECT_EQ(file.tensors().size(), 3u);
    EXPECT_EQ(file.metadata()["general.architecture"], "qwen3");
    for (std::size_t part = 0; part < 3; ++part) {
      std::vector<std::byte> bytes(32);
      file.read(file.tensors().at(fmt::format("t{}", part)), 0, bytes);
      EXPECT_EQ(bytes, std::vector<std::byte>(32, static_cast<std::byte>(part + 1)));
    }
  }
}

TEST_F(SplitGguf, NamesWhatIsMissingOrBelongsElsewhere) {
  const auto refused = [&](const fs::path& path, auto... parts) { expect_error<DataError>([&] { GgufFile file(path); }, parts...); };
  refused(path_of(1), "m-00002-of-00003.gguf", "part 2 of 3 of a model; name the first, m-00001-of-00003.gguf");
  write(2, [&](GgufMetadata& metadata) { set(metadata, "split.no", 1); });
  refused(path_of(0), "m-00003-of-00003.gguf", "says that it is part 2 of 3; part 3 of 3 belongs here");
  write(2, [&](GgufMetadata& metadata) { set(metadata, "split.count", 4); });
  refused(path_of(0), "says that it is part 3 of 4");
  fs::remove(path_of(2));
  refused(path_of(0), "m-00003-of-00003.gguf", "Part 3 of 3 is missing");
  refused(folder_.path(), "Part 3 of 3 is missing");
  write(2);
  write(0, [&](GgufMetadata& metadata) { set(metadata, "split.tensors.count", 4); });
  refused(path_of(0), "3 tensors together; the first says that they have 4");
  write(0, [&](GgufMetadata& metadata) { set(metadata, "split.count", 60000); });
  refused(path_of(0), "one of 60000 parts; at most 512");
  write(0, [&](GgufMetadata& metadata) { set(metadata, "split.count", 2); });
  refused(path_of(0), "must end in \"-00001-of-00002.gguf\"");
  write(0);
  fs::rename(path_of(0), folder_ / "model.gguf");
  refused(folder_ / "model.gguf", "part 1 of 3 of a model, and its name must end in");
  fs::rename(folder_ / "model.gguf", path_of(0));
  fs::copy_file(path_of(0), path_of(1), fs::copy_options::overwrite_existing);
  refused(path_of(0), "m-00002-of-00003.gguf", "The tensor t0 comes twice");
}

TEST_F(SplitGguf, AFolderHasOneModelAndNoOtherWeights) {
  fs::copy_file(path_of(0), folder_ / "other.gguf");
  expect_error<DataError>([&] { GgufFile file(folder_.path()); }, "The folder has 2 GGUF models; name one of them, as m-00001-of-00003.gguf or other.gguf");
  EXPECT_TRUE(is_gguf(folder_.path()));
  folder_.write("model.safetensors", "");
  EXPECT_FALSE(is_gguf(test::TemporaryFolder().path()));
}

TEST_F(GgufTest, ChangedFilesAreReadOrRefused) {
  std::string original;
  {
    GgufWriter writer(folder_ / "w.gguf", every_kind(), {{"m", GgmlType::q8_0, {2, 32}}, {"v", GgmlType::f32, {8}}});
    writer.append(std::vector<std::byte>(68));
    writer.append(std::vector<std::byte>(32));
    writer.finish();
    original = test::slurp(folder_ / "w.gguf");
  }
  Rng rng(5);
  int read = 0, refused = 0;
  for (int i = 0; i < 1'500; ++i) {
    try {
      const GgufFile file(folder_.write("m.gguf", test::mutated(original, rng)));
      for (const auto& [name, tensor] : file.tensors()) {
        std::vector<std::byte> bytes(tensor.bytes);
        file.read(tensor, 0, bytes);
      }
      ++read;
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(read, 50);
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace nibble::gguf_test
