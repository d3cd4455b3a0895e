// SPDX-License-Identifier: Apache-2.0
// Reply: one sequence's way from token ids to what its client asked to see: text up to a stop
// string, ids, log-probabilities. One thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "asynctls/v1/generation.pb.h"
#include "engine/scheduler/request.h"
#include "engine/text/detokenizer.h"
#include "engine/text/stop_matcher.h"
#include "engine/text/tokenizer.h"

namespace asynctls {

// A token as it waits for its reader.
struct ReplyToken {
  uint32_t index;  // of the sequence
  uint32_t id;
  float log_prob;
  std::unique_ptr<v1::TopIds> top;  // where asked for
};

class Reply {
 public:
  // The references outlive this.
  Reply(const Tokenizer& tokenizer,
        const v1::ResponseOptions& options,
        const v1::Stopping& stopping);

  // Adds what `token` shows to `delta`. After the stop string nothing is shown any more. True: this
  // token completed a stop string.
  bool Take(ReplyToken& token, v1::Delta& delta);
  // Adds what was held back. `stop_token` is the id that ended the sequence, if one did.
  void Flush(std::optional<uint32_t> stop_token, v1::Delta& delta);

  uint32_t tokens() const { return tokens_; }  // shown so far
  const std::optional<std::string>& stop_string() const { return matcher_.matched(); }

 private:
  // Through the stop matcher; true: a stop string is complete.
  bool Feed(const std::string& text, v1::Delta& delta);
  void ShowText(const std::string& text, v1::Delta& delta);

  const v1::ResponseOptions& options_;
  const v1::Stopping& stopping_;
  Detokenizer detokenizer_;
  StopMatcher matcher_;
  uint32_t tokens_ = 0;
};

}  // namespace asynctls
