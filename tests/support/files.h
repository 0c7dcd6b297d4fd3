#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace nibble::test {

// A folder of its own for a test, removed at the end.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::filesystem::path& parent = std::filesystem::temp_directory_path()) {
    std::string pattern = (parent / "nibble-test-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

  // Writes a file into the folder and returns its path.
  std::filesystem::path write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

inline std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::filesystem::path source_path(const std::string& relative) {
  return std::filesystem::path(NIBBLE_SOURCE_DIR) / relative;
}

inline const std::filesystem::path tiny = source_path("models/tiny-qwen3");

// Runs `action`, which must throw an E whose text contains every one of `parts`.
template <typename E, typename Action, typename... Parts>
void expect_error(Action&& action, const Parts&... parts) {
  try {
    action();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const E& error) {
    const std::string what = error.what();
    for (const std::string& part : {std::string(parts)...}) {
      EXPECT_NE(what.find(part), what.npos) << "\"" << part << "\" is not in: " << what;
    }
  }
}

}  // namespace nibble::test
