// SPDX-License-Identifier: Apache-2.0
// From vllm.grpc.engine's request to ours. Pure; what has the same bounds here as there is left to
// the front end's checks. The table of what maps to what is in server/README.md.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "asynctls/v1/generation.pb.h"
#include "vllm/grpc/engine/vllm_engine.pb.h"

namespace asynctls {

// Of an answer that is not streamed and so is one message per sequence: token ids and
// log-probabilities, of prompt and replies together. Some 8 MiB.
inline constexpr uint64_t kMaxUnstreamedValues = 1 << 20;

// Errors: INVALID_ARGUMENT naming field, value and limit; UNIMPLEMENTED naming a field that asks
// for what this server does not do.
absl::StatusOr<v1::GenerateRequest> FromVllmRequest(const vllm::grpc::engine::GenerateRequest& in);

// `status` of the front end with the fields of this protocol.
absl::Status ToVllmError(const absl::Status& status);

}  // namespace asynctls
