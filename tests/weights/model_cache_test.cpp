#include "nibble/weights/model_cache.h"

#include <chrono>

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/io/json.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/quantize.h"
#include "tests/support/files.h"

namespace nibble::model_cache_test {
namespace {

using test::expect_error;

using test::tiny;

// A copy of the shipped model, and a cache.
class ModelCache : public testing::Test {
 protected:
  void SetUp() override {
    fs::copy(tiny, model_);
    set_log_hook([this](LogLevel level, std::string_view text) {
      if (level == LogLevel::warning) warnings_.push_back(std::string(text));
    });
  }
  void TearDown() override { set_log_hook({}); }

  CachedModel get() const { return cached_model(model_, cache_); }

  // The next model is made again, and whole; with a warning or without.
  void expect_made_again(std::size_t warnings, const std::string& part = {}) {
    warnings_.clear();
    const CachedModel again = get();
    EXPECT_TRUE(again.made);
    ASSERT_EQ(warnings_.size(), warnings);
    for (const std::string& warning : warnings_) EXPECT_NE(warning.find(part), std::string::npos) << warning;
    EXPECT_FALSE(get().made);
    EXPECT_EQ(std::distance(fs::directory_iterator(again.folder), {}), 7) << "files of the cached model";
  }

  // Overwrites bytes of a file and leaves its size and time as they were, or not.
  static void change(const fs::path& path, std::uint64_t at, const std::string& bytes, bool keep_time) {
    const auto time = fs::last_write_time(path);
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(at));
    file << bytes;
    file.close();
    fs::last_write_time(path, keep_time ? time : time + std::chrono::seconds(1));
  }

  test::TemporaryFolder folder_;
  fs::path model_ = folder_ / "tiny", cache_ = folder_ / "cache";
  std::vector<std::string> warnings_;
};

TEST_F(ModelCache, IsMadeOnceAndIsTheModelQuantised) {
  const CachedModel made = get();
  EXPECT_TRUE(made.made && made.in_cache);
  EXPECT_EQ(made.folder.parent_path(), cache_);
  EXPECT_TRUE(made.folder.filename().string().starts_with("tiny-"));
  quantize_model({.model = model_, .output = folder_ / "whole"});
  for (const auto& entry : fs::directory_iterator(folder_ / "whole")) {
    EXPECT_EQ(test::slurp(entry.path()), test::slurp(made.folder / entry.path().filename())) << entry.path();
  }
  EXPECT_EQ(made.bytes, Checkpoint(folder_ / "whole").total_bytes());
  const CachedModel again = get();
  EXPECT_FALSE(again.made);
  EXPECT_EQ(again.folder, made.folder);
  EXPECT_EQ(again.bytes, made.bytes);
  EXPECT_TRUE(warnings_.empty());
  // Named in another way, and with a slash at the end.
  EXPECT_FALSE(cached_model(model_ / "", cache_).made);
}

TEST_F(ModelCache, LeavesAloneWhatIsIn4Bits) {
  const fs::path bnb = test::source_path("tests/golden/bnb/model");
  const CachedModel cached = cached_model(bnb, cache_);
  EXPECT_FALSE(cached.in_cache || cached.made);
  EXPECT_EQ(cached.folder, bnb);
  EXPECT_FALSE(fs::exists(cache_));
}

// What is done to the model makes another key; what was kept before stays.
TEST_F(ModelCache, SeesThatTheModelHasChanged) {
  const fs::path weights = model_ / "model.safetensors";
  const TensorInfo tensor = *Checkpoint(model_).at("model.layers.1.mlp.up_proj.weight").tensor;
  const fs::path first = get().folder;
  fs::last_write_time(weights, fs::last_write_time(weights) + std::chrono::seconds(1));
  expect_made_again(0);
  change(weights, tensor.offset, "\x01\x3c", true);
  expect_made_again(0);
  change(weights, tensor.offset + tensor.bytes - 2, "\x01\x3c", true);
  expect_made_again(0);
  change(weights, tensor.offset + tensor.bytes / 2, "\x01\x3c", true);
  expect_made_again(0);
  std::ofstream(model_ / "generation_config.json") << R"({"eos_token_id": 3})";
  expect_made_again(0);
  EXPECT_EQ(read_model_config(get().folder).eos_token_ids, std::vector<std::uint32_t>{3});
  EXPECT_TRUE(fs::exists(first));
  EXPECT_EQ(std::distance(fs::directory_iterator(cache_), {}), 6);
}

TEST_F(ModelCache, MakesADamagedOneAgain) {
  const fs::path kept = get().folder, weights = kept / "model.safetensors";
  change(weights, fs::file_size(weights) / 2, "x", false);
  expect_made_again(1, "is made again");
  fs::resize_file(weights, fs::file_size(weights) - 1);
  expect_made_again(1, weights.string());
  std::ofstream(kept / "cache.json") << "{";
  expect_made_again(1, "cache.json");
  fs::remove(kept / "config.json");
  expect_made_again(1, "is made again");
  fs::remove(kept / "cache.json");
  expect_made_again(1, "is made again");
  fs::remove_all(kept);
  fs::create_directory(kept);
  std::ofstream(kept / "other") << "foreign";
  expect_made_again(1, kept.string());
}

// Of another model, and of another version of what is written.
TEST_F(ModelCache, MakesAForeignOneAgain) {
  const fs::path kept = get().folder;
  Json manifest = read_json_file(kept / "cache.json");
  EXPECT_EQ(manifest["source"], model_.string());
  for (const auto& [key, value] : {std::pair<const char*, Json>{"source_key", "0123456789abcdef"}, {"version", 2}, {"key", "f"}, {"key", 7}}) {
    Json other = manifest;
    other[key] = value;
    std::ofstream(kept / "cache.json") << other.dump();
    expect_made_again(1, kept.string());
    manifest = read_json_file(kept / "cache.json");
  }
}

TEST_F(ModelCache, LeavesNothingWhereItFails) {
  expect_error<UsageError>([&] { cached_model(model_, ""); }, "No folder");
  std::ofstream(cache_) << "a file";
  expect_error<DataError>([&] { get(); }, cache_.string());
  fs::remove(cache_);
  const TensorInfo tensor = *Checkpoint(model_).at("model.layers.1.mlp.up_proj.weight").tensor;
  change(model_ / "model.safetensors", tensor.offset, "\xc0\x7f", true);
  expect_error<DataError>([&] { get(); }, tensor.name, "index 0");
  EXPECT_TRUE(fs::is_empty(cache_));
}

}  // namespace
}  // namespace nibble::model_cache_test
