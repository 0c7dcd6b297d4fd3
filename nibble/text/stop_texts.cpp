#include "nibble/text/stop_texts.h"

#include <algorithm>
#include <utility>

#include "nibble/base/error.h"

namespace nibble::text {
namespace {

// The longest end of `text` that is a beginning of `stop`, without being all of it.
std::size_t begun(std::string_view text, std::string_view stop) {
  for (std::size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.ends_with(stop.substr(0, length))) return length;
  }
  return 0;
}

}  // namespace

StopTexts::StopTexts(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) check<UsageError>(!stop.empty(), "stop", "A stop text is empty.");
}

std::string StopTexts::push(std::string_view piece) {
  if (stopped_) return {};
  held_ += piece;
  std::size_t end = std::string::npos, open = 0;
  for (const std::string& stop : stops_) {
    end = std::min(end, held_.find(stop));
    open = std::max(open, begun(held_, stop));
  }
  stopped_ = end != std::string::npos;
  std::string certain = held_.substr(0, stopped_ ? end : held_.size() - open);
  if (stopped_) {
    held_.clear();
  } else {
    held_.erase(0, certain.size());
  }
  return certain;
}

std::string StopTexts::finish() { return std::exchange(held_, {}); }

}  // namespace nibble::text
