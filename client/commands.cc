// SPDX-License-Identifier: Apache-2.0
#include "client/commands.h"

#include <cstdio>

#include "absl/strings/str_format.h"

namespace asynctls {

int Fail(const absl::Status& status, ExitCode code) {
  absl::FPrintF(stderr, "asynctls: %s\n", status.ToString());
  if (code == kExitUsage) absl::FPrintF(stderr, "--help lists the flags\n");
  return code;
}

}  // namespace asynctls
