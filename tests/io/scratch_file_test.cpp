#include "nibble/io/scratch_file.h"

#include "nibble/base/error.h"
#include "nibble/io/available_memory.h"
#include "tests/support/disk.h"

#include <sys/resource.h>
#include <sys/statvfs.h>

#include <vector>

namespace nibble::scratch_file_test {
namespace {

std::vector<std::byte> some_bytes(std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * 31 + i / 251);
  return bytes;
}

TEST(ScratchFile, GivesBackWhatWasWrittenAndLeavesNothing) {
  const test::FolderOnDisk folder;
  const fs::path inner = folder / "made" / "here";
  ScratchFile file(inner, 100'000, "--dir");
  EXPECT_EQ(file.size(), 100'000u);
  EXPECT_TRUE(fs::is_empty(inner));
  const auto bytes = some_bytes(60'000);
  file.write_at(40'000, bytes);
  file.write_at(0, std::span(bytes).first(10));
  file.sync();
  std::vector<std::byte> back(60'000), first(12);
  file.read(40'000, back);
  EXPECT_EQ(back, bytes);
  file.read(0, first);
  EXPECT_TRUE(std::equal(first.begin(), first.begin() + 10, bytes.begin()));
  EXPECT_EQ(first[10], std::byte{0});
  EXPECT_THROW(file.write_at(40'001, bytes), Error);
  EXPECT_THROW(file.read(UINT64_MAX, first), Error);
}

TEST(ScratchFile, TakesItsRoomAtOnce) {
  const test::FolderOnDisk folder;
  ScratchFile file(folder.path(), 3 << 20, "--dir");
  struct stat status {};
  ASSERT_EQ(::stat(test::scratch_of(folder.path()).c_str(), &status), 0);
  EXPECT_EQ(status.st_size, 3 << 20);
  EXPECT_GE(status.st_blocks * 512, 3 << 20);
}

TEST(ScratchFile, RefusesADiskThatIsTooFull) {
  const test::FolderOnDisk folder;
  const std::uint64_t more = std::uint64_t{1} << 60;
  for (const fs::path& where : {folder.path(), folder / "not" / "there"}) {
    test::expect_error<DataError>([&] { check_scratch_folder(where, more, "--dir"); }, where.string(), std::to_string(more), "free", "--dir");
    test::expect_error<DataError>([&] { ScratchFile(where, more, "--dir"); }, where.string(), "free", "--dir");
  }
  EXPECT_FALSE(fs::exists(folder / "not")) << "nothing was made";
  check_scratch_folder(folder / "not" / "there", 1000, "--dir");
  EXPECT_FALSE(fs::exists(folder / "not"));
  test::expect_error<DataError>([&] { check_scratch_folder("", 1000, "--dir"); }, "--dir", "name a folder");
}

// Where the kernel would end the program with a signal.
TEST(ScratchFile, RefusesMoreThanAFileMayHave) {
  const test::FolderOnDisk folder;
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const struct rlimit small{.rlim_cur = 100'000, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_NO_THROW(ScratchFile(folder.path(), 100'000, "--dir"));
  test::expect_error<DataError>([&] { ScratchFile(folder.path(), 100'001, "--dir"); }, "100001", "100000", "ulimit -f");
  ::setrlimit(RLIMIT_FSIZE, &before);
}

TEST(ScratchFile, RefusesAFolderOfMemory) {
  const fs::path memory = test::folder_in_memory();
  if (memory.empty()) GTEST_SKIP() << "No tmpfs is mounted.";
  test::expect_error<DataError>([&] { ScratchFile(memory / "nibble-test", 1000, "--dir"); }, (memory / "nibble-test").string(), "tmpfs", "--dir");
  EXPECT_FALSE(fs::exists(memory / "nibble-test"));
}

TEST(ScratchFile, SaysWhereItBecameShorter) {
  const test::FolderOnDisk folder;
  const ScratchFile file(folder.path(), 10'000, "--dir");
  fs::resize_file(test::scratch_of(folder.path()), 7000);
  std::vector<std::byte> bytes(100);
  file.read(6900, bytes);
  test::expect_error<DataError>([&] { file.read(6901, bytes); }, (folder.path()).string(), "ends at byte 7000", "10000");
}

// A root with the files that the kernel would show.
class AvailableMemory : public testing::Test {
 protected:
  void put(const fs::path& file, const std::string& text) {
    fs::create_directories((folder.path() / file).parent_path());
    folder.write(file.string(), text);
  }
  std::optional<std::uint64_t> found() const { return available_memory(folder.path()); }

  test::TemporaryFolder folder;
};

TEST_F(AvailableMemory, IsTheMachinesOrWhatIsLeftOfTheGroups) {
  EXPECT_EQ(found(), std::nullopt);
  put("proc/meminfo", "MemTotal:  4000 kB\nMemAvailable:     3000 kB\n");
  EXPECT_EQ(found(), 3000u * 1024);
  put("proc/self/cgroup", "0::/user/job\n");
  EXPECT_EQ(found(), 3000u * 1024) << "no files of the group";
  put("sys/fs/cgroup/user/job/memory.max", "max\n");
  put("sys/fs/cgroup/user/job/memory.current", "500000\n");
  EXPECT_EQ(found(), 3000u * 1024) << "no limit";
  put("sys/fs/cgroup/user/memory.max", "2000000\n");
  put("sys/fs/cgroup/user/memory.current", "1500000\n");
  EXPECT_EQ(found(), 500'000u) << "of the group above";
  put("sys/fs/cgroup/user/memory.stat", "anon 100\nfile 700000\nfile_mapped 5\n");
  EXPECT_EQ(found(), 1'200'000u) << "pages of files can be given up";
  put("sys/fs/cgroup/user/memory.stat", "anon 100\nfile 700000\nfile_mapped 5\nshmem 200000\n");
  EXPECT_EQ(found(), 1'000'000u) << "shared memory cannot";
  put("sys/fs/cgroup/user/job/memory.max", "600000\n");
  EXPECT_EQ(found(), 100'000u);
  put("sys/fs/cgroup/user/job/memory.max", "400000\n");
  EXPECT_EQ(found(), 0u) << "over its limit";
}

// In a container the own group is what is mounted.
TEST_F(AvailableMemory, FindsTheGroupThatIsMounted) {
  put("proc/meminfo", "MemAvailable: 3000 kB\n");
  put("proc/self/cgroup", "0::/../../elsewhere\n");
  put("sys/fs/cgroup/memory.max", "900000\n");
  put("sys/fs/cgroup/memory.current", "100000\n");
  EXPECT_EQ(found(), 800'000u);
}

TEST_F(AvailableMemory, KnowsTheFirstVersionOfGroups) {
  put("proc/meminfo", "MemAvailable: 3000 kB\n");
  put("proc/self/cgroup", "7:cpu,memory:/job\n3:pids:/job\n");
  put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  put("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n");
  EXPECT_EQ(found(), 3000u * 1024);
  put("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1000000\n");
  put("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "900000\n");
  put("sys/fs/cgroup/memory/job/memory.stat", "cache 5\ntotal_cache 300000\ntotal_shmem 100000\n");
  EXPECT_EQ(found(), 300'000u);
}

TEST(AvailableMemoryHere, IsSome) {
  const auto bytes = available_memory();
  ASSERT_TRUE(bytes.has_value());
  EXPECT_GT(*bytes, std::uint64_t{16} << 20);
  EXPECT_LT(*bytes, std::uint64_t{1} << 50);
}

}  // namespace
}  // namespace nibble::scratch_file_test
