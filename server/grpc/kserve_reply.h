// SPDX-License-Identifier: Apache-2.0
// InferReply: the front end's messages as ModelInferResponses: pieces of text as they come, or all
// of it at the end; `triton_final_response` tells the last one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "asynctls/v1/generation.pb.h"
#include "inference/grpc_service.pb.h"
#include "server/grpc/kserve_settings.h"

namespace asynctls {

class InferReply {
 public:
  explicit InferReply(const InferRequest& request);

  // Fills `out`, whatever it held; false: nothing is to be sent for `response`.
  bool Take(const v1::GenerateResponse& response, inference::ModelInferResponse& out);

 private:
  void TakeDelta(const v1::Delta& delta);
  void TakeFinished(const v1::Finished& finished);
  // A response with what has come since the last one.
  void Fill(bool final, inference::ModelInferResponse& out);

  // What there is of one sequence.
  struct Sequence {
    std::string text;     // not sent yet
    uint32_t tokens = 0;  // likewise
    double log_prob = 0;  // of all its tokens
    std::string reason = "None";
  };

  const InferOptions options_;
  const std::string prompt_;  // where it is echoed
  const uint32_t count_;      // sequences
  std::vector<Sequence> sequences_;
  uint32_t prompt_tokens_ = 0;
  uint32_t finished_ = 0;
};

}  // namespace asynctls
