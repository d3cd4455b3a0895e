// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/call_info.h"

#include <algorithm>

#include "absl/strings/ascii.h"

namespace asynctls {
namespace {

constexpr size_t kTraceAt = 3, kTraceDigits = 32, kTraceparent = 55;

bool IsLowerHex(char c) { return absl::ascii_isxdigit(c) && !absl::ascii_isupper(c); }

}  // namespace

std::string TraceId(const std::string& traceparent) {
  if (traceparent.size() < kTraceparent) return "";
  if (traceparent[2] != '-' || traceparent[kTraceAt + kTraceDigits] != '-') return "";
  const std::string id = traceparent.substr(kTraceAt, kTraceDigits);
  const bool valid = std::all_of(id.begin(), id.end(), IsLowerHex);
  const bool zero = std::all_of(id.begin(), id.end(), [](char c) { return c == '0'; });
  return valid && !zero ? id : "";
}

}  // namespace asynctls
