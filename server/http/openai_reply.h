// SPDX-License-Identifier: Apache-2.0
// OpenAiReply: the answer to one chat or completion call, as server-sent events or in one piece. A
// call with several prompts is several generations; each writes through a ResponseWriter of its
// own, and this joins them.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "asynctls/v1/generation.pb.h"
#include "engine/text/tokenizer.h"
#include "server/frontend/response_writer.h"
#include "server/http/http_call.h"
#include "server/http/openai_format.h"
#include "server/http/openai_request.h"
#include "server/http/reasoning_splitter.h"

namespace asynctls {

// Log-probabilities an answer in one piece may hold, alternatives included.
inline constexpr size_t kMaxLogProbs = 256 << 10;

class OpenAiReply : public std::enable_shared_from_this<OpenAiReply> {
 public:
  // `id` and `model` are shown. `tokenizer` outlives this.
  OpenAiReply(std::shared_ptr<HttpCall> call,
              OpenAiRequest request,
              std::string id,
              std::string model,
              absl::Time created,
              const Tokenizer& tokenizer);
  ~OpenAiReply();

  // The writer of one prompt's generation. Once for each; then, when Frontend::Generate has
  // returned, Submitted.
  std::shared_ptr<ResponseWriter> Writer(uint32_t prompt);
  void Submitted(uint32_t prompt);

  // Ends every generation. Any thread.
  void Cancel();

 private:
  class Part;
  // One sequence; touched by the party that has its generation's turn.
  struct Choice {
    ReasoningSplitter splitter;
    std::string text, reasoning;          // of an answer in one piece
    std::vector<TokenLogProb> log_probs;  // likewise
    size_t offset = 0;                    // characters, for text_offset
    v1::Finished finished;
  };
  struct Prompt {
    std::weak_ptr<Part> part;
    bool submitted = false;  // guarded by mu_
    std::string echo;        // its text, where asked for
    std::vector<TokenLogProb> log_probs;
    std::vector<Choice> choices;
  };

  // By the generations of `prompt`, as ResponseWriter's.
  bool Write(uint32_t prompt, Part& part, v1::GenerateResponse& response);
  void Finish(const absl::Status& status);

  bool Started(uint32_t prompt, Part& part);
  bool Delta(uint32_t prompt, Part& part, const v1::Delta& delta);
  bool Finished(uint32_t prompt, Part& part, const v1::Finished& finished);
  void Collect(Choice& choice, const v1::Delta& delta);
  std::string PromptText(uint32_t prompt) const;
  std::vector<TokenLogProb> EchoLogProbs(uint32_t prompt) const;
  uint32_t Index(uint32_t prompt, uint32_t sequence) const { return prompt * n_ + sequence; }

  // One server-sent event with one choice.
  std::string Event(const std::string& choice) const;
  std::string ChatEvent(uint32_t index,
                        const std::string& delta,
                        const std::string& log_probs,
                        const std::string& finish) const;
  std::string TextEvent(uint32_t index,
                        const std::string& text,
                        const std::string& log_probs,
                        const std::string& finish) const;
  std::string TextMembers(const ReasoningSplitter::Parts& parts) const;
  std::string DeltaLogProbs(Choice& choice, const v1::Delta& delta) const;
  std::string LastEvents() const;
  std::string FullChoice(uint32_t prompt, uint32_t sequence);
  std::string Full();

  bool Send(Part& part, std::string bytes);
  // Counts log-probabilities; too many end the call.
  void Count(size_t log_probs);
  void Fail(const absl::Status& status);

  // Constant after construction.
  const std::shared_ptr<HttpCall> call_;
  const OpenAiRequest request_;
  const OpenAiOptions& options_;  // request_'s
  const std::string id_;
  const std::string head_;  // of every object
  const Tokenizer& tokenizer_;
  const uint32_t n_;  // sequences of a prompt

  std::vector<Prompt> prompts_;

  std::mutex mu_;  // guards what follows
  bool streaming_ = false;
  bool cancelled_ = false;  // generations are to end, what they write is dropped
  uint32_t ended_ = 0;      // prompts
  size_t log_probs_ = 0;
  v1::Usage usage_;
};

}  // namespace asynctls
