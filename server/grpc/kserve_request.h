// SPDX-License-Identifier: Apache-2.0
// From a ModelInferRequest to ours: text in, with what Triton's vLLM backend and TensorRT-LLM take
// as tensors, as parameters and in the JSON of `sampling_parameters`. Pure. The names that are
// understood are in server/README.md; any other is refused.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "inference/grpc_service.pb.h"
#include "server/grpc/kserve_settings.h"

namespace asynctls {

inline constexpr char kModelVersion[] = "1";
inline constexpr int kMaxInferIdBytes = 128;

// Errors: INVALID_ARGUMENT naming the tensor or parameter, its value and the limit; UNIMPLEMENTED
// naming one that asks for what this server does not do; NOT_FOUND for another version.
absl::StatusOr<InferRequest> FromInferRequest(const inference::ModelInferRequest& in);

// `status` of the front end with the names of this protocol.
absl::Status ToInferError(const absl::Status& status);

}  // namespace asynctls
