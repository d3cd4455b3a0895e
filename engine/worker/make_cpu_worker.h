// SPDX-License-Identifier: Apache-2.0
// The CPU backend's instantiation root: its worker and its calibration, without a template in
// sight.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/worker/worker.h"

namespace asynctls {

// One rank on the CPU, idle until Init.
std::unique_ptr<Worker> MakeCpuWorker();

struct CpuCalibration {
  std::string model_dir;
  v1::WeightSource weights = v1::WEIGHT_SOURCE_FILES;
  std::span<const uint32_t> tokens;
  std::string source;    // what the tokens are, kept in the file
  std::string out_file;  // empty = key_codes.safetensors beside the checkpoint
  int threads = 1;
  std::function<void(int64_t done, int64_t total)> progress;  // may be empty
};
// Computes a model's key code tables and writes them. Errors: as Worker::Init; INVALID_ARGUMENT
// without tokens; as WriteTensors.
absl::Status CalibrateCpu(const CpuCalibration& calibration);

}  // namespace asynctls
