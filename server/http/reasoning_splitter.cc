// SPDX-License-Identifier: Apache-2.0
#include "server/http/reasoning_splitter.h"

#include <algorithm>

#include "absl/strings/match.h"

namespace asynctls {
namespace {

constexpr absl::string_view kOpen = "<think>";
constexpr absl::string_view kClose = "</think>";
constexpr const char* kSpace = " \t\r\n";

// Bytes at the end of `text` that may be the start of `tag`.
size_t TagStart(absl::string_view text, absl::string_view tag) {
  size_t n = std::min(text.size(), tag.size() - 1);
  while (n > 0 && !absl::EndsWith(text, tag.substr(0, n))) --n;
  return n;
}

// Leaves out the newlines between a tag and what follows it.
void DropNewlines(std::string& text) {
  text.erase(0, std::min(text.find_first_not_of('\n'), text.size()));
}

}  // namespace

ReasoningSplitter::Parts ReasoningSplitter::Append(absl::string_view text) {
  Parts out;
  if (state_ == State::kContent) {
    out.content = std::string(text);
    return out;
  }
  held_.append(text.data(), text.size());
  Advance(out);
  return out;
}

void ReasoningSplitter::Advance(Parts& out) {
  if (state_ == State::kStart) {
    const size_t first = held_.find_first_not_of(kSpace);
    if (first == std::string::npos) return;
    const absl::string_view rest = absl::string_view(held_).substr(first);
    if (absl::StartsWith(kOpen, rest) && rest.size() < kOpen.size()) return;
    if (absl::StartsWith(rest, kOpen)) {
      state_ = State::kReasoning;
      held_.erase(0, first + kOpen.size());
    } else {
      state_ = State::kContent;
      out.content.swap(held_);
      return;
    }
  }
  if (state_ == State::kReasoning) {
    if (!reasoning_begun_) DropNewlines(held_);
    reasoning_begun_ = reasoning_begun_ || !held_.empty();
    const size_t close = held_.find(kClose.data(), 0, kClose.size());
    if (close == std::string::npos) {
      const size_t known = held_.size() - TagStart(held_, kClose);
      out.reasoning.append(held_, 0, known);
      held_.erase(0, known);
      return;
    }
    out.reasoning.append(held_, 0, close);
    held_.erase(0, close + kClose.size());
    state_ = State::kContentStart;
  }
  if (state_ == State::kContentStart) {
    DropNewlines(held_);
    if (held_.empty()) return;
    state_ = State::kContent;
    out.content.swap(held_);
  }
}

ReasoningSplitter::Parts ReasoningSplitter::Flush() {
  Parts out;
  (state_ == State::kReasoning ? out.reasoning : out.content).swap(held_);
  return out;
}

}  // namespace asynctls
