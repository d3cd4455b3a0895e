// SPDX-License-Identifier: Apache-2.0
// Enum values as people and protocols spell them.
#pragma once

#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"
#include "asynctls/v1/generation.pb.h"

namespace asynctls {

// dense, exact, lagged.
inline std::string ModeName(v1::AttentionMode mode) {
  return absl::AsciiStrToLower(absl::StripPrefix(v1::AttentionMode_Name(mode), "ATTENTION_MODE_"));
}

// stop, length, aborted.
inline std::string ReasonName(v1::FinishReason reason) {
  return absl::AsciiStrToLower(absl::StripPrefix(v1::FinishReason_Name(reason), "FINISH_REASON_"));
}

// As vLLM and OpenAI have it: stop, length, abort.
inline const char* CommonReasonName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    default:  // the enum is open
      return "abort";
  }
}

}  // namespace asynctls
