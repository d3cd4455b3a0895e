// SPDX-License-Identifier: Apache-2.0
// Tensors and parameters of the Open Inference Protocol as JSON values, and back: `contents` and
// raw bytes, both ways.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "inference/grpc_service.pb.h"

namespace asynctls {

// A tensor of a text model is a few scalars or strings.
inline constexpr int64_t kMaxTensorElements = 1024;

// The elements of input `index`, an array of booleans, numbers or strings. Errors: INVALID_ARGUMENT
// naming the tensor. Requires: a short name.
absl::StatusOr<Json> ReadTensor(const inference::ModelInferRequest& request, int index);

// A scalar. Errors: INVALID_ARGUMENT naming the parameter.
absl::StatusOr<Json> ReadParameter(const std::string& name,
                                   const inference::InferParameter& parameter);

// Adds an output of shape [values.size()]: raw or as contents. A response holds only one kind.
void AddStrings(const char* name,
                const std::vector<std::string>& values,
                bool raw,
                inference::ModelInferResponse& out);
void AddFloats(const char* name,
               const std::vector<float>& values,
               bool raw,
               inference::ModelInferResponse& out);
void AddUints(const char* name,
              const std::vector<uint32_t>& values,
              bool raw,
              inference::ModelInferResponse& out);

}  // namespace asynctls
