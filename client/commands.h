// SPDX-License-Identifier: Apache-2.0
// The subcommands of `asynctls`. Each takes its own arguments and returns the exit code.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "asynctls/v1/generation.pb.h"
#include "client/flags.h"

namespace asynctls {

enum ExitCode : int {
  kExitOk = 0,
  kExitFailed = 1,  // the request, or all requests, or the calibration
  kExitUsage = 2,   // bad flags or an input file that cannot be read
};

int RunGenerate(const std::vector<std::string>& args);
int RunChat(const std::vector<std::string>& args);
int RunBench(const std::vector<std::string>& args);
int RunEval(const std::vector<std::string>& args);
int RunCalibrate(const std::vector<std::string>& args);

// What the flags of `generate` ask for. Errors: INVALID_ARGUMENT or NOT_FOUND naming flag or file.
absl::StatusOr<v1::GenerateRequest> GenerateRequestFrom(const Flags& flags);
const std::vector<FlagSpec>& GenerateFlags();

// Prints an error, and "try --help" after a usage error; returns `code`.
int Fail(const absl::Status& status, ExitCode code);

}  // namespace asynctls
