// SPDX-License-Identifier: Apache-2.0
// ReasoningSplitter: a reply that starts with <think> is reasoning up to </think>, and content from
// there; any other reply is all content. Works on pieces of any size.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace asynctls {

class ReasoningSplitter {
 public:
  struct Parts {
    std::string reasoning, content;
  };

  // What `text` adds; what may still become part of a tag is held back.
  Parts Append(absl::string_view text);
  // What was held back, at the end of the reply.
  Parts Flush();

 private:
  enum class State { kStart, kReasoning, kContentStart, kContent };

  void Advance(Parts& out);

  State state_ = State::kStart;
  bool reasoning_begun_ = false;
  std::string held_;
};

}  // namespace asynctls
