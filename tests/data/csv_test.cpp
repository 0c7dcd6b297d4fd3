#include "nibble/data/csv.h"

#include <gtest/gtest.h>

#include <vector>

#include "nibble/base/error.h"
#include "nibble/data/line_reader.h"
#include "nibble/data/row.h"

namespace nibble::data::csv_test {
namespace {

// Gives the text in pieces of `piece` bytes, so that every place is once the end of one.
std::string converted(const std::string& text, char separator = ',', std::size_t piece = 1) {
  std::string result;
  std::size_t at = 0;
  const ByteReader in = [&](std::span<char> out) {
    const std::size_t bytes = text.copy(out.data(), std::min(out.size(), piece), at);
    at += bytes;
    return bytes;
  };
  csv_to_rows(in, separator, "table.csv", [&](std::string_view bytes) { result += bytes; });
  return result;
}

std::string error_of(const std::string& text) {
  try {
    converted(text);
  } catch (const DataError& error) {
    return error.what();
  }
  return "none";
}

TEST(Csv, RecordsBecomeObjectsInTheirLines) {
  EXPECT_EQ(converted("q,a\n1,2\n3,4\n"), "\n{\"q\":\"1\",\"a\":\"2\"}\n{\"q\":\"3\",\"a\":\"4\"}\n");
  EXPECT_EQ(converted("\xef\xbb\xbfq,a\r\n1,2\r\n\r\n3,4"), "\n{\"q\":\"1\",\"a\":\"2\"}\n\n{\"q\":\"3\",\"a\":\"4\"}\n");
  EXPECT_EQ(converted("q\ta\n1\t2,3\n", '\t'), "\n{\"q\":\"1\",\"a\":\"2,3\"}\n");
  EXPECT_EQ(converted("q,a\n,\n"), "\n{\"q\":\"\",\"a\":\"\"}\n");
  EXPECT_EQ(converted("text\n\"\"\n\nx\n"), "\n{\"text\":\"\"}\n\n{\"text\":\"x\"}\n");
}

TEST(Csv, QuotesHoldAnything) {
  const std::string text = "q,\"the\nanswer\"\n\"a \"\"word\"\", and\r\nmore\",\"\"\nlast,5\" nails\n";
  const std::string rows = "\n\n" R"({"q":"a \"word\", and\r\nmore","the\nanswer":""})" "\n\n" R"({"q":"last","the\nanswer":"5\" nails"})" "\n";
  for (const std::size_t piece : {1, 2, 3, 7, 1000}) EXPECT_EQ(converted(text, ',', piece), rows) << piece;
}

TEST(Csv, ABadRecordIsALineWithItsSentence) {
  EXPECT_EQ(converted("q,a\n1\n2,3\n"), "\n\x1eThe record has 1 fields, the header 2.\n{\"q\":\"2\",\"a\":\"3\"}\n");
  EXPECT_NE(converted("q,a\n\"1\"x,2\n").find("\x1eText follows the quote"), std::string::npos);
  EXPECT_NE(converted("q,a\n1\r2,2\n").find("\x1e""A carriage return"), std::string::npos);
  EXPECT_NE(converted("q,a\n\xff,2\n").find("\x1eThe field of the column \"q\" is not UTF-8."), std::string::npos);
  EXPECT_THROW(parse_row("\x1eThe record has 1 fields, the header 2."), DataError);
}

TEST(Csv, WhatCannotBeATableIsRefusedWithItsLine) {
  EXPECT_NE(error_of("").find("line 1: The file is empty"), std::string::npos);
  EXPECT_NE(error_of("a,b,a\n").find("line 1: The header names the column \"a\" twice"), std::string::npos);
  EXPECT_NE(error_of("a,,b\n").find("line 1: Column 2 of the header has no name"), std::string::npos);
  EXPECT_NE(error_of("a,b\n1,2\n3,\"4\n5,6\n").find("line 3: A quote opens a field here"), std::string::npos);
  EXPECT_NE(error_of("a" + std::string(5000, ',')).find("more than 4096 fields"), std::string::npos);
  EXPECT_NE(error_of("a,b\n1," + std::string(max_line_bytes + 1, 'x')).find("line 2: The record is longer than"), std::string::npos);
}

}  // namespace
}  // namespace nibble::data::csv_test
