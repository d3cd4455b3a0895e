// SPDX-License-Identifier: Apache-2.0
#include "engine/base/host_port.h"

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace asynctls {

absl::StatusOr<std::pair<std::string, int>> ParseHostPort(const std::string& field,
                                                          const std::string& value) {
  const size_t colon = value.rfind(':');
  int port = -1;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(value.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " '", value, "' is not HOST:PORT with a port from 0 to 65535"));
  }
  const std::string host = value.substr(0, colon);
  if (absl::StrContains(host, ':') && host.front() != '[') {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " '", value, "': write an IPv6 address as [ADDRESS]:PORT"));
  }
  return std::make_pair(host, port);
}

std::string WithPort(const std::string& listen, int port) {
  return absl::StrCat(listen.substr(0, listen.rfind(':') + 1), port);
}

}  // namespace asynctls
