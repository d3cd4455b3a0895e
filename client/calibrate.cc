// SPDX-License-Identifier: Apache-2.0
// asynctls calibrate: key code tables of a model from a text, without a server.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/commands.h"
#include "engine/base/json.h"
#include "engine/text/tokenizer.h"
#include "engine/worker/make_cpu_worker.h"

namespace asynctls {
namespace {

constexpr char kUsage[] =
    "usage: asynctls calibrate --model DIR --text FILE [--out FILE] [--threads N]\n"
    "Runs the model over the text, densely, and writes its key code tables. Use text unlike the\n"
    "questions you will measure with. Exit code: 0, 1 failed, 2 bad usage.\n\n";

const std::vector<FlagSpec>& CalibrateFlags() {
  static const std::vector<FlagSpec> specs = {
      {"model", "DIR", "a model in HuggingFace layout"},
      {"text", "FILE", "UTF-8; some tens of thousands of tokens"},
      {"out", "FILE", "[key_codes.safetensors beside the model]"},
      {"threads", "N", "[all cores]"},
  };
  return specs;
}

void ShowProgress(int64_t done, int64_t total) {
  absl::FPrintF(stderr, "\rcalibrating: %d of %d tokens%s", done, total, done < total ? "" : "\n");
  std::fflush(stderr);
}

absl::Status Calibrate(const Flags& flags, int threads) {
  auto tokenizer = Tokenizer::Load(absl::StrCat(flags.Text("model"), "/tokenizer.json"));
  if (!tokenizer.ok()) return tokenizer.status();
  absl::StatusOr<std::string> text = ReadFile(flags.Text("text"));
  if (!text.ok()) return text.status();
  auto tokens = (*tokenizer)->Encode(*text, /*parse_special=*/false);
  if (!tokens.ok()) return tokens.status();
  CpuCalibration calibration;
  calibration.model_dir = flags.Text("model");
  calibration.tokens = *tokens;
  calibration.source = flags.Text("text");
  calibration.out_file = flags.Text("out");
  calibration.threads = threads;
  if (isatty(STDERR_FILENO) != 0) calibration.progress = ShowProgress;
  return CalibrateCpu(calibration);
}

}  // namespace

int RunCalibrate(const std::vector<std::string>& args) {
  if (std::count(args.begin(), args.end(), "--help") > 0) {
    absl::PrintF("%s%s", kUsage, Flags::Help(CalibrateFlags()));
    return kExitOk;
  }
  absl::StatusOr<Flags> flags = Flags::Parse(CalibrateFlags(), args);
  if (!flags.ok()) return Fail(flags.status(), kExitUsage);
  const absl::Status required = flags->Require({"model", "text"});
  if (!required.ok()) return Fail(required, kExitUsage);
  const uint64_t cores = std::max(1u, std::thread::hardware_concurrency());
  const absl::StatusOr<uint64_t> threads = flags->Whole("threads", cores, 1, 4096);
  if (!threads.ok()) return Fail(threads.status(), kExitUsage);
  const absl::Status status = Calibrate(*flags, static_cast<int>(*threads));
  return status.ok() ? static_cast<int>(kExitOk) : Fail(status, kExitFailed);
}

}  // namespace asynctls
