#include "nibble/io/file.h"

#include "nibble/base/error.h"
#include "tests/support/files.h"

namespace nibble::file_test {
namespace {

using test::expect_error;

TEST(File, ReadsAnyRange) {
  const test::TemporaryFolder folder;
  const File file(folder.write("f", "0123456789"));
  EXPECT_EQ(file.size(), 10);
  std::string part(4, '?');
  file.read(3, std::as_writable_bytes(std::span(part)));
  EXPECT_EQ(part, "3456");
  file.read(10, {});
  EXPECT_EQ(read_file(file.path()), "0123456789");
}

TEST(File, RefusesRangesBeyondTheEnd) {
  const test::TemporaryFolder folder;
  const File file(folder.write("f", "0123456789"));
  std::string part(4, '?');
  const auto bytes = std::as_writable_bytes(std::span(part));
  expect_error<DataError>([&] { file.read(7, bytes); }, "Bytes 7 to 11", "has 10");
  expect_error<DataError>([&] { file.read(UINT64_MAX - 1, bytes); }, "the file has 10");
}

TEST(File, NoticesAFileThatBecameShorter) {
  const test::TemporaryFolder folder;
  const File file(folder.write("f", "0123456789"));
  fs::resize_file(file.path(), 5);
  std::string part(8, '?');
  expect_error<DataError>([&] { file.read(0, std::as_writable_bytes(std::span(part))); }, "ends at byte 5", "10 bytes");
}

TEST(File, NamesPathAndReason) {
  const test::TemporaryFolder folder;
  expect_error<DataError>([&] { File(folder / "absent"); }, (folder / "absent").string(), "No such file or directory");
  expect_error<DataError>([&] { File(folder.path()); }, "not a regular file");
  expect_error<DataError>([&] { OutputFile(folder / "no" / "f"); }, "No such file or directory");
}

TEST(File, SaysWhyAPathCannotBeFollowed) {
  const test::TemporaryFolder folder;
  fs::create_symlink("loop", folder / "loop");
  EXPECT_TRUE(path_exists(folder / "loop"));
  EXPECT_FALSE(path_exists(folder / "absent"));
  EXPECT_FALSE(path_exists(folder.write("f", "") / "below-a-file"));
  expect_error<DataError>([&] { read_file(folder / "loop"); }, "Too many levels of symbolic links");
}

TEST(File, HoldsToTheCap) {
  const test::TemporaryFolder folder;
  const auto path = folder.write("f", "0123456789");
  EXPECT_EQ(read_file(path, 10).size(), 10);
  expect_error<DataError>([&] { read_file(path, 9); }, "10 bytes", "at most 9");
}

TEST(OutputFile, SaysThatTheDiskIsFull) {
  OutputFile file("/dev/full");
  const std::string text = "x";
  expect_error<DataError>([&] { file.write(std::as_bytes(std::span(text))); }, "/dev/full", "No space left on device");
}

}  // namespace
}  // namespace nibble::file_test
