#include "nibble/io/gguf_parts.h"

#include "nibble/base/error.h"
#include "nibble/io/gguf.h"

#include <algorithm>
#include <charconv>
#include <optional>

namespace nibble {
namespace {

constexpr std::string_view ending = ".gguf";

struct Split {
  std::string prefix;
  std::int64_t number = 0, count = 0;
};

// "-00001-of-00003" at the end of a name; more digits where a number needs them.
std::optional<Split> split_of(std::string_view stem) {
  const std::size_t of = stem.rfind("-of-"), dash = of == stem.npos || of == 0 ? stem.npos : stem.rfind('-', of - 1);
  if (dash == stem.npos) return std::nullopt;
  Split split{.prefix = std::string(stem.substr(0, dash))};
  const auto read = [](std::string_view digits, std::int64_t& to) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), to);
    return digits.size() >= 5 && error == std::errc() && end == digits.data() + digits.size() && to > 0;
  };
  if (!read(stem.substr(dash + 1, of - dash - 1), split.number) || !read(stem.substr(of + 4), split.count)) return std::nullopt;
  return split;
}

}  // namespace

fs::path GgufPartName::of(std::int64_t number) const { return folder / fmt::format("{}-{:05}-of-{:05}{}", prefix, number, count, ending); }

GgufPartName gguf_part_name(const fs::path& path, const Json& metadata, std::int64_t count) {
  const auto own = JsonObject(metadata, path.string()).integer("split.no", {0, UINT16_MAX});
  const auto split = split_of(path.stem().string());
  check<DataError>(path.extension() == ending && split && split->count == count && split->number == own + 1, path.string(),
                   "The file is part {} of {} of a model, and its name must end in \"-{:05}-of-{:05}{}\" for the others to be found.", own + 1, count,
                   own + 1, count, ending);
  const GgufPartName name{.folder = path.parent_path(), .prefix = split->prefix, .count = count};
  check<DataError>(own == 0, path.string(), "The file is part {} of {} of a model; name the first, {}.", own + 1, count,
                   name.of(1).filename().string());
  return name;
}

std::vector<fs::path> gguf_files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    const bool is_model = it->path().extension() == ending && !it->path().filename().string().starts_with("mmproj");
    if (is_model && fs::is_regular_file(it->path(), ignored)) files.push_back(it->path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

fs::path gguf_first_part(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return path;
  std::vector<fs::path> models = gguf_files_in(path);
  // A later part stands for itself only where the first is missing, which opening it says.
  std::erase_if(models, [&](const fs::path& file) {
    const auto split = split_of(file.stem().string());
    return split && split->number > 1 && path_exists(GgufPartName{path, split->prefix, split->count}.of(1));
  });
  check<DataError>(!models.empty(), path.string(), "The folder has no GGUF file.");
  check<DataError>(models.size() == 1, path.string(), "The folder has {} GGUF models; name one of them, as {} or {}.", models.size(),
                   models.front().filename().string(), models.back().filename().string());
  return models.front();
}

std::string gguf_model_name(const fs::path& path) {
  const std::string stem = gguf_first_part(path).stem().string();
  const auto split = split_of(stem);
  return split ? split->prefix : stem;
}

}  // namespace nibble
