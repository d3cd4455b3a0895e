// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/errors.h"

#include "absl/strings/str_replace.h"
#include "google/rpc/error_details.pb.h"

namespace asynctls {
namespace {

std::string TypeUrl(const google::protobuf::Message& message) {
  return absl::StrCat("type.googleapis.com/", message.GetDescriptor()->full_name());
}

void Attach(absl::Status& status, const google::protobuf::Message& detail) {
  status.SetPayload(TypeUrl(detail), absl::Cord(detail.SerializeAsString()));
}

template <class Detail>
Detail Read(const absl::Status& status) {
  Detail detail;
  const auto payload = status.GetPayload(TypeUrl(detail));
  if (payload.has_value()) detail.ParseFromString(std::string(*payload));
  return detail;
}

}  // namespace

absl::Status FieldError(const std::string& field, const std::string& message) {
  absl::Status status = absl::InvalidArgumentError(message);
  google::rpc::BadRequest detail;
  google::rpc::BadRequest::FieldViolation& violation = *detail.add_field_violations();
  violation.set_field(field);
  violation.set_description(message);
  Attach(status, detail);
  return WithReason(std::move(status), "INVALID_FIELD");
}

absl::Status RenameFields(const absl::Status& status, FieldNames names) {
  const std::string field = ErrorField(status);
  if (!absl::IsInvalidArgument(status) || field.empty()) return status;
  return WithReason(
      FieldError(absl::StrReplaceAll(field, names), absl::StrReplaceAll(status.message(), names)),
      ErrorReason(status));
}

absl::Status UnsupportedField(const std::string& field) {
  return WithReason(
      absl::UnimplementedError(absl::StrCat(field, " is not supported by this server")),
      "UNSUPPORTED_FIELD");
}

absl::Status WithReason(absl::Status status, const std::string& reason) {
  google::rpc::ErrorInfo detail;
  detail.set_reason(reason);
  detail.set_domain(kErrorDomain);
  Attach(status, detail);
  return status;
}

absl::Status WithRetry(absl::Status status, absl::Duration after) {
  google::rpc::RetryInfo detail;
  detail.mutable_retry_delay()->set_seconds(absl::IDivDuration(after, absl::Seconds(1), &after));
  detail.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(after)));
  Attach(status, detail);
  return status;
}

std::string ErrorField(const absl::Status& status) {
  const auto detail = Read<google::rpc::BadRequest>(status);
  return detail.field_violations().empty() ? "" : detail.field_violations(0).field();
}

std::string ErrorReason(const absl::Status& status) {
  return Read<google::rpc::ErrorInfo>(status).reason();
}

absl::Duration RetryAfter(const absl::Status& status) {
  const auto delay = Read<google::rpc::RetryInfo>(status).retry_delay();
  return absl::Seconds(delay.seconds()) + absl::Nanoseconds(delay.nanos());
}

}  // namespace asynctls
