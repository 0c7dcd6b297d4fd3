#include "nibble/data/open_rows.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <zlib.h>
#include <zstd.h>

#include <thread>

#include "nibble/base/error.h"
#include "nibble/data/dataset.h"
#include "nibble/io/unpack.h"
#include "tests/support/environment.h"
#include "tests/support/files.h"

namespace nibble::data::open_rows_test {
namespace {

using test::expect_error;

std::string gzip(const std::string& text) {
  z_stream stream{};
  constexpr int as_gzip = 16 + MAX_WBITS;
  EXPECT_EQ(::deflateInit2(&stream, 6, Z_DEFLATED, as_gzip, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(::deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(::deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}

// With a checksum, as the program zstd does.
std::string zstd(const std::string& text) {
  std::string out(::ZSTD_compressBound(text.size()), '\0');
  ZSTD_CCtx* context = ::ZSTD_createCCtx();
  ::ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  out.resize(::ZSTD_compress2(context, out.data(), out.size(), text.data(), text.size()));
  ::ZSTD_freeCCtx(context);
  return out;
}

std::string content(const RowText& rows) {
  std::string text(rows.file.size(), '\0');
  rows.file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

// Long enough to need several blocks.
std::string many_rows() {
  std::string text;
  for (int i = 0; i < 40000; ++i) text += fmt::format("{{\"text\": \"row {} {}\"}}\n", i, i * 2654435761u);
  return text;
}

class OpenRows : public ::testing::Test {
 protected:
  std::string read(const std::string& name, const std::string& bytes) const { return content(open_rows(folder_.write(name, bytes))); }

  test::TemporaryFolder folder_;
};

TEST_F(OpenRows, UnpacksByTheFirstBytes) {
  const std::string text = many_rows();
  EXPECT_EQ(read("plain.jsonl", text), text);
  EXPECT_EQ(read("rows.jsonl.gz", gzip(text)), text);
  EXPECT_EQ(read("rows.jsonl.zst", zstd(text)), text);
  EXPECT_EQ(read("misnamed.jsonl", zstd(text)), text);
  EXPECT_EQ(read("two.gz", gzip(text) + gzip("more\n")), text + "more\n");
  EXPECT_EQ(read("two.zst", zstd(text) + zstd("more\n")), text + "more\n");
  EXPECT_EQ(read("empty.gz", gzip("")), "");
}

TEST_F(OpenRows, ReadsTablesByTheirName) {
  const std::string rows = "\n{\"q\":\"1\",\"a\":\"2\"}\n";
  EXPECT_EQ(read("t.csv", "q,a\n1,2\n"), rows);
  EXPECT_EQ(read("t.TSV", "q\ta\n1\t2\n"), rows);
  EXPECT_EQ(read("t.csv.gz", gzip("q,a\n1,2\n")), rows);
  EXPECT_EQ(read("t.tab.zst", zstd("q\ta\n1\t2\n")), rows);
}

TEST_F(OpenRows, ReadsPipesOnce) {
  const fs::path pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const std::string text = many_rows();
  for (const auto& [bytes, expected] : {std::pair(text, text), std::pair(gzip(text), text),
                                        std::pair(std::string("q,a\n1,2\n"), std::string("\n{\"q\":\"1\",\"a\":\"2\"}\n"))}) {
    std::thread writer([&] { std::ofstream(pipe, std::ios::binary) << bytes; });
    const std::string found = content(open_rows(pipe));
    writer.join();
    EXPECT_EQ(found, expected);
  }
}

TEST_F(OpenRows, APackedFileIsTheSameData) {
  const auto tokenizer = text::Tokenizer::load(test::source_path("models/tiny-qwen3"));
  const std::string text = "{\"text\": \"one\"}\n{\"text\": \"two\"}\n";
  const Dataset plain(folder_.write("rows.jsonl", text), tokenizer, nullptr, {.cache_bytes = 0});
  const Dataset packed(folder_.write("rows.jsonl.gz", gzip(text)), tokenizer, nullptr, {.cache_bytes = 0});
  EXPECT_EQ(plain.hash(), packed.hash());
  EXPECT_EQ(plain.example(1).tokens, packed.example(1).tokens);
}

TEST_F(OpenRows, BrokenPackingsAreRefused) {
  const std::string text = many_rows();
  for (const auto& [name, packed] : {std::pair(std::string("rows.gz"), gzip(text)), std::pair(std::string("rows.zst"), zstd(text))}) {
    expect_error<DataError>([&] { read(name, packed.substr(0, packed.size() / 2)); }, name, "before they are complete");
    std::string damaged = packed;
    for (std::size_t i = packed.size() / 2; i < packed.size() / 2 + 64; ++i) damaged[i] = static_cast<char>(~damaged[i]);
    expect_error<DataError>([&] { read(name, damaged); }, name, "damaged near byte");
    expect_error<DataError>([&] { read(name, packed + "and more of it"); }, name, "damaged near byte");
  }
}

// 128 MiB of zeros in a few KiB.
TEST_F(OpenRows, ABombIsRefused) {
  expect_error<DataError>([&] { read("bomb.zst", zstd(std::string(std::size_t{128} << 20, '\0'))); }, "bomb.zst", "1000 times");
  const std::string fine = zstd(std::string(unpack_ratio_from, ' '));
  EXPECT_EQ(read("fine.zst", fine).size(), unpack_ratio_from);
}

TEST_F(OpenRows, ParquetIsRefusedWithWhatConvertsIt) {
  expect_error<DataError>([&] { read("rows.parquet", "PAR1 and more"); }, "rows.parquet", "duckdb", "read_parquet", "to_json");
}

TEST_F(OpenRows, OtherFormsOfFilesAreRefusedWithWhatMakesRowsOfThem) {
  for (const std::string array : {"[{\"text\": \"a\"}]", "\xef\xbb\xbf \n[\n{\"text\": \"a\"}]"}) {
    expect_error<DataError>([&] { read("rows.json", array); }, "rows.json", "one JSON array", "jq -c '.[]'", "to_json");
    expect_error<DataError>([&] { read("rows.json.gz", gzip(array)); }, "rows.json.gz", "one JSON array");
  }
  EXPECT_EQ(read("brackets.csv", "[a],b\n1,2\n"), "\n{\"[a]\":\"1\",\"b\":\"2\"}\n");
  expect_error<DataError>([&] { read("rows.jsonl.xz", std::string("\xfd" "7zXZ\0", 6)); }, "rows.jsonl.xz", "packed by xz", "gzip, zstd");
  expect_error<DataError>([&] { read("rows.jsonl.bz2", "BZh91AY&SY"); }, "packed by bzip2");
  expect_error<DataError>([&] { read("rows.zip", "PK\x03\x04"); }, "packed by zip");
  EXPECT_EQ(read("BZh.csv", "BZh9,b\n1,2\n"), "\n{\"BZh9\":\"1\",\"b\":\"2\"}\n");
}

TEST_F(OpenRows, NothingStaysInTheTemporaryFolder) {
  const test::TemporaryFolder temporary;
  const std::string packed = folder_.write("rows.gz", gzip(many_rows()));
  {
    const test::EnvironmentVariable folder("TMPDIR", temporary.path().string());
    const RowText open = open_rows(packed);
    EXPECT_TRUE(fs::is_empty(temporary.path()));
    EXPECT_EQ(content(open), many_rows());
  }
  const test::EnvironmentVariable folder("TMPDIR", "/nowhere/at/all");
  expect_error<DataError>([&] { open_rows(packed); }, "/nowhere/at/all", "TMPDIR");
}

}  // namespace
}  // namespace nibble::data::open_rows_test
