// SPDX-License-Identifier: Apache-2.0
// The one place where an error of ours becomes a gRPC status. The table is in server/README.md.
#pragma once

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace asynctls {

// Codes keep their meaning, payloads become the details of a google.rpc.Status
// (grpc-status-details-bin). A bug (INTERNAL, UNKNOWN) is logged under a random id and leaves the
// process as that id only.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace asynctls
