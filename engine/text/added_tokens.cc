// SPDX-License-Identifier: Apache-2.0
#include "engine/text/added_tokens.h"

#include <algorithm>
#include <cstring>

namespace asynctls {

AddedTokenFinder::AddedTokenFinder(const std::vector<AddedToken>& tokens)
    : tokens_(tokens), nodes_(1) {
  for (uint32_t index = 0; index < tokens_.size(); ++index) {
    uint32_t node = 0;
    for (const char c : tokens_[index].content) {
      const auto byte = static_cast<uint8_t>(c);
      auto& children = nodes_[node].children;
      auto child = std::lower_bound(children.begin(), children.end(), std::make_pair(byte, 0u));
      if (child == children.end() || child->first != byte) {
        child = children.insert(child, {byte, static_cast<uint32_t>(nodes_.size())});
        node = child->second;
        nodes_.emplace_back();
      } else {
        node = child->second;
      }
    }
    nodes_[node].token = index;
    begins_[static_cast<uint8_t>(tokens_[index].content[0])] = true;
  }
  if (std::count(begins_.begin(), begins_.end(), true) == 1) {
    only_first_byte_ = tokens_[0].content[0];
  }
}

std::optional<AddedTokenFinder::Match> AddedTokenFinder::LongestAt(absl::string_view text,
                                                                   size_t begin) const {
  std::optional<Match> longest;
  uint32_t node = 0;
  for (size_t i = begin; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    const auto& children = nodes_[node].children;
    const auto child = std::lower_bound(children.begin(), children.end(), std::make_pair(byte, 0u));
    if (child == children.end() || child->first != byte) break;
    node = child->second;
    if (const std::optional<uint32_t> token = nodes_[node].token) {
      longest = Match{begin, i + 1, tokens_[*token].id, tokens_[*token].special};
    }
  }
  return longest;
}

std::optional<AddedTokenFinder::Match> AddedTokenFinder::Find(absl::string_view text,
                                                              size_t from) const {
  if (tokens_.empty()) return std::nullopt;
  for (size_t i = from; i < text.size(); ++i) {
    if (only_first_byte_.has_value()) {
      const void* const found = std::memchr(text.data() + i, *only_first_byte_, text.size() - i);
      if (found == nullptr) return std::nullopt;
      i = static_cast<const char*>(found) - text.data();
    } else if (!begins_[static_cast<uint8_t>(text[i])]) {
      continue;
    }
    if (const std::optional<Match> match = LongestAt(text, i)) return match;
  }
  return std::nullopt;
}

}  // namespace asynctls
