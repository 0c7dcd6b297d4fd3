#include "nibble/io/atomic.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nibble/base/error.h"
#include "tests/support/files.h"

namespace nibble::atomic_test {
namespace {

using test::expect_error;

std::size_t entries(const fs::path& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), {}));
}

// The id of a process that has ended.
pid_t dead_process() {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(0);
  ::waitpid(pid, nullptr, 0);
  return pid;
}

TEST(AtomicFile, ReplacesWholeOrNotAtAll) {
  const test::TemporaryFolder folder;
  const auto path = folder.write("f", "old");
  {
    AtomicFile file(path);
    file.write(std::as_bytes(std::span(std::string_view("new"))));
    EXPECT_EQ(test::slurp(path), "old");
  }
  EXPECT_EQ(test::slurp(path), "old");
  EXPECT_EQ(entries(folder.path()), 1);
  write_file_atomically(path, "new");
  EXPECT_EQ(test::slurp(path), "new");
  EXPECT_EQ(entries(folder.path()), 1);
}

TEST(AtomicFile, CreatesParents) {
  const test::TemporaryFolder folder;
  write_file_atomically(folder / "a/b/f", "text");
  EXPECT_EQ(test::slurp(folder / "a/b/f"), "text");
  expect_error<DataError>([&] { write_file_atomically(folder / "a/b/f/g", ""); }, "Could not create this folder");
}

// A rename would put a regular file into their place, also of /dev/null.
TEST(AtomicFile, DevicesAndPipesAreWrittenToAndNeverReplaced) {
  const test::TemporaryFolder folder;
  const auto pipe = folder / "pipe", link = folder / "link";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  fs::create_symlink("/dev/null", link);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  write_file_atomically(pipe, "text");
  write_file_atomically(link, "text");
  char read[8] = {};
  EXPECT_EQ(::read(reader, read, sizeof read), 4);
  EXPECT_STREQ(read, "text");
  ::close(reader);
  expect_error<UsageError>([&] { AtomicFile file(pipe); }, "no regular file");
  EXPECT_TRUE(fs::is_fifo(pipe) && fs::is_symlink(link) && fs::is_character_file(link));
  expect_error<DataError>([] { write_file_atomically("/dev/full", "text"); }, "No space left");
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
}

TEST(AtomicFolder, AppearsAtCommit) {
  const test::TemporaryFolder folder;
  AtomicFolder out(folder / "run/checkpoint/");
  fs::create_directory(out.path() / "sub");
  write_file_atomically(out.path() / "sub" / "f", "1");
  EXPECT_FALSE(fs::exists(folder / "run/checkpoint"));
  out.commit();
  EXPECT_EQ(test::slurp(folder / "run/checkpoint/sub/f"), "1");
  EXPECT_EQ(entries(folder / "run"), 1);
}

TEST(AtomicFolder, ReplacesAnOlderFolderAndLeavesNothingBeside) {
  const test::TemporaryFolder folder;
  fs::create_directory(folder / "c");
  folder.write("c/only-old", "old");
  folder.write("c/f", "old");
  AtomicFolder out(folder / "c");
  write_file_atomically(out.path() / "f", "new");
  EXPECT_EQ(test::slurp(folder / "c/f"), "old");
  out.commit();
  EXPECT_EQ(test::slurp(folder / "c/f"), "new");
  EXPECT_FALSE(fs::exists(folder / "c/only-old"));
  EXPECT_EQ(entries(folder.path()), 1);
}

TEST(AtomicFolder, AnAbandonedOneIsRemoved) {
  const test::TemporaryFolder folder;
  { AtomicFolder out(folder / "c"); }
  EXPECT_EQ(entries(folder.path()), 0);
}

TEST(AtomicFolder, ClearsWhatAKilledRunLeftButNotWhatALiveOneWrites) {
  const test::TemporaryFolder folder;
  const auto dead = folder / (".c.tmp-" + std::to_string(dead_process()));
  const auto alive = folder / ".c.tmp-1";
  fs::create_directory(dead);
  fs::create_directory(alive);
  fs::create_directory(folder / ".c.tmp-notes");
  { AtomicFolder out(folder / "c"); }
  EXPECT_FALSE(fs::exists(dead));
  EXPECT_TRUE(fs::exists(alive));
  EXPECT_TRUE(fs::exists(folder / ".c.tmp-notes"));
}

TEST(AtomicFolder, KeepsARetiredFolderWhileTheTargetIsMissing) {
  const test::TemporaryFolder folder;
  const auto retired = folder / (".c.old-" + std::to_string(dead_process()));
  fs::create_directory(retired);
  AtomicFolder(folder / "c").commit();
  EXPECT_TRUE(fs::exists(retired));
  AtomicFolder(folder / "c").commit();
  EXPECT_FALSE(fs::exists(retired));
}

TEST(AtomicFolder, DoesNotReplaceAFile) {
  const test::TemporaryFolder folder;
  folder.write("c", "text");
  AtomicFolder out(folder / "c");
  expect_error<DataError>([&] { out.commit(); }, "in the way");
  EXPECT_EQ(test::slurp(folder / "c"), "text");
}

}  // namespace
}  // namespace nibble::atomic_test
