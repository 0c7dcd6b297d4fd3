#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble::text {

// Ends a text that comes in pieces where one of some stop texts appears. What may be the beginning of one is held back until
// it is known.
class StopTexts {
 public:
  // Throws UsageError for an empty one.
  explicit StopTexts(std::vector<std::string> stops);

  // The text that is certain to come before any stop text; nothing more once one has appeared.
  std::string push(std::string_view piece);
  // What is held back, at the end of the text.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace nibble::text
