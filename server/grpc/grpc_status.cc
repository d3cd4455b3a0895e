// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_status.h"

#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/logging.h"
#include "google/rpc/status.pb.h"

namespace asynctls {

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const absl::StatusCode code = status.code();
  if (code == absl::StatusCode::kInternal || code == absl::StatusCode::kUnknown) {
    const std::string id = absl::StrCat(absl::Hex(std::random_device{}(), absl::kZeroPad8));
    spdlog::error("internal_error id={} {}", id, status.ToString());
    return grpc::Status(grpc::StatusCode::INTERNAL, absl::StrCat("internal error ", id));
  }
  google::rpc::Status rich;
  rich.set_code(status.raw_code());
  rich.set_message(std::string(status.message()));
  status.ForEachPayload([&](absl::string_view type_url, const absl::Cord& payload) {
    google::protobuf::Any& detail = *rich.add_details();
    detail.set_type_url(std::string(type_url));
    detail.set_value(std::string(payload));
  });
  // Both libraries number the codes alike.
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message()),
                      rich.details().empty() ? "" : rich.SerializeAsString());
}

}  // namespace asynctls
