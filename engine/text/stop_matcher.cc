// SPDX-License-Identifier: Apache-2.0
#include "engine/text/stop_matcher.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace asynctls {

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  for (std::string& stop : stops) {
    assert(!stop.empty());
    Pattern pattern{std::move(stop), {0, 0}, 0};
    const std::string& text = pattern.text;
    for (uint32_t i = 1, border = 0; i < text.size(); ++i) {
      while (border > 0 && text[i] != text[border]) border = pattern.border[border];
      if (text[i] == text[border]) ++border;
      pattern.border.push_back(border);
    }
    patterns_.push_back(std::move(pattern));
  }
}

void StopMatcher::Advance(Pattern& pattern, char c) {
  while (pattern.length > 0 && pattern.text[pattern.length] != c) {
    pattern.length = pattern.border[pattern.length];
  }
  if (pattern.text[pattern.length] == c) ++pattern.length;
}

std::string StopMatcher::Append(absl::string_view text) {
  if (matched_.has_value()) return "";
  held_.append(text.data(), text.size());
  const size_t already_read = held_.size() - text.size();
  size_t keep = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const Pattern* longest = nullptr;  // of those that end here
    keep = 0;
    for (Pattern& pattern : patterns_) {
      Advance(pattern, text[i]);
      keep = std::max<size_t>(keep, pattern.length);
      const bool whole = pattern.length == pattern.text.size();
      if (whole && (longest == nullptr || longest->text.size() < pattern.text.size())) {
        longest = &pattern;
      }
    }
    if (longest != nullptr) {
      matched_ = longest->text;
      held_.resize(already_read + i + 1 - longest->text.size());
      return std::exchange(held_, "");
    }
  }
  if (text.empty()) return "";
  std::string safe = held_.substr(0, held_.size() - keep);
  held_.erase(0, safe.size());
  return safe;
}

std::string StopMatcher::Flush() {
  for (Pattern& pattern : patterns_) pattern.length = 0;
  return std::exchange(held_, "");
}

}  // namespace asynctls
