#include "nibble/io/atomic.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <string_view>
#include <system_error>

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr std::string_view staging_mark = ".tmp-";
constexpr std::string_view retired_mark = ".old-";

// "runs/a/" and "runs/a" are the same target; a bare name lies in the working folder.
fs::path normalized_target(const fs::path& path) {
  std::error_code error;
  fs::path target = fs::absolute(path, error).lexically_normal();
  check<DataError>(!error, path.string(), "Could not find the working folder: {}.", error.message());
  if (!target.has_filename()) target = target.parent_path();
  check<UsageError>(target.has_filename(), path.string(), "This cannot be written: it names no file or folder.");
  return target;
}

fs::path sibling(const fs::path& target, std::string_view mark) {
  return target.parent_path() / fmt::format(".{}{}{}", target.filename().string(), mark, ::getpid());
}

void sync_path(const fs::path& path) {
  const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) fail_with_errno(path, "open this to put it on the disk");
  // Some network file systems cannot sync a folder and say EINVAL.
  if (::fsync(fd.get()) != 0 && errno != EINVAL) fail_with_errno(path, "put this on the disk");
}

void sync_tree(const fs::path& folder) {
  try {
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (entry.is_regular_file() || entry.is_directory()) sync_path(entry.path());
    }
  } catch (const fs::filesystem_error& error) {
    fail<DataError>(folder.string(), "Could not list this folder: {}.", error.code().message());
  }
  sync_path(folder);
}

void create_parents(const fs::path& target) {
  std::error_code error;
  fs::create_directories(target.parent_path(), error);
  check<DataError>(!error, target.parent_path().string(), "Could not create this folder: {}.", error.message());
}

bool process_is_gone(std::string_view pid_text) {
  pid_t pid = 0;
  const auto [end, error] = std::from_chars(pid_text.data(), pid_text.data() + pid_text.size(), pid);
  if (error != std::errc() || end != pid_text.data() + pid_text.size() || pid <= 0) return false;
  return ::kill(pid, 0) != 0 && errno == ESRCH;
}

// Removes ".NAME.tmp-PID" and, where NAME itself is whole, ".NAME.old-PID" of processes that have ended.
void clear_leftovers(const fs::path& target) {
  std::error_code ignored;
  const std::string own_name = target.filename().string();
  for (fs::directory_iterator entry(target.parent_path(), ignored), end; entry != end; entry.increment(ignored)) {
    const std::string name = entry->path().filename().string();
    for (const auto mark : {staging_mark, retired_mark}) {
      const std::string start = fmt::format(".{}{}", own_name, mark);
      if (!name.starts_with(start) || !process_is_gone(std::string_view(name).substr(start.size()))) continue;
      if (mark == retired_mark && !path_exists(target)) continue;
      fs::remove_all(entry->path(), ignored);
    }
  }
}

// Puts `staging` in the place of the folder `target`, which exists, and removes the latter.
void replace_folder(const fs::path& staging, const fs::path& target) {
  if (::renameat2(AT_FDCWD, staging.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) {
    sync_path(target.parent_path());
    std::error_code ignored;
    fs::remove_all(staging, ignored);
    return;
  }
  if (errno != EINVAL && errno != ENOSYS && errno != EXDEV) fail_with_errno(target, "replace this folder");
  // The file system cannot exchange: there is a moment without `target`, but both folders are whole throughout.
  const fs::path retired = sibling(target, retired_mark);
  if (::rename(target.c_str(), retired.c_str()) != 0) fail_with_errno(target, "move this folder aside");
  if (::rename(staging.c_str(), target.c_str()) != 0) {
    const int code = errno;
    ::rename(retired.c_str(), target.c_str());
    errno = code;
    fail_with_errno(target, "replace this folder");
  }
  sync_path(target.parent_path());
  std::error_code ignored;
  fs::remove_all(retired, ignored);
}

// A device, pipe or socket, perhaps at the end of a link: /dev/null, /dev/stdout.
bool is_special(const fs::path& path) {
  std::error_code ignored;
  return fs::is_other(path, ignored);
}

fs::path prepared(const fs::path& path) {
  const fs::path target = normalized_target(path);
  create_parents(target);
  clear_leftovers(target);
  return target;
}

fs::path prepared_file(const fs::path& path) {
  check<UsageError>(!is_special(path), path.string(), "This is no regular file, and one would take its place; name another.");
  return prepared(path);
}

}  // namespace

AtomicFile::AtomicFile(fs::path target) : target_(prepared_file(target)), file_(sibling(target_, staging_mark)) {}

AtomicFile::~AtomicFile() {
  if (!committed_) ::unlink(file_.path().c_str());
}

void AtomicFile::commit() {
  file_.sync_and_close();
  if (::rename(file_.path().c_str(), target_.c_str()) != 0) fail_with_errno(target_, "replace this file");
  committed_ = true;
  sync_path(target_.parent_path());
}

void write_file_atomically(const fs::path& path, std::string_view text) {
  if (is_special(path)) return OutputFile(path).write(std::as_bytes(std::span(text)));
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

AtomicFolder::AtomicFolder(fs::path target) : target_(prepared(target)), staging_(sibling(target_, staging_mark)) {
  std::error_code error;
  // An earlier attempt of this same process may have left one.
  fs::remove_all(staging_, error);
  fs::create_directory(staging_, error);
  check<DataError>(!error, staging_.string(), "Could not create this folder: {}.", error.message());
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(staging_, ignored);
}

void AtomicFolder::commit() {
  std::error_code ignored;
  const bool replaces = path_exists(target_);
  check<DataError>(!replaces || fs::is_directory(target_, ignored), target_.string(),
                   "A file of this name is in the way of the folder to be written.");
  sync_tree(staging_);
  if (replaces) {
    replace_folder(staging_, target_);
  } else {
    if (::rename(staging_.c_str(), target_.c_str()) != 0) fail_with_errno(target_, "move the new folder here");
    sync_path(target_.parent_path());
  }
  committed_ = true;
}

}  // namespace nibble
