// SPDX-License-Identifier: Apache-2.0
// StepClock: where a step's time goes. Time between two calls of Enter belongs to the phase entered
// first, so phases need no brackets. Wall time of the calling thread: of ops that are synchronous
// it is theirs; of others it is that of handing them over, and kDevice is the time they took.
#pragma once

#include <array>
#include <chrono>

namespace asynctls {

enum class StepPhase {
  kInputs,
  kAttentionPrefill,
  kAttentionDecode,
  kSelect,
  kGemm,
  kSample,
  kDevice,
  kOther
};
inline constexpr std::array<const char*, 8> kStepPhaseNames = {"inputs",
                                                               "attention_prefill",
                                                               "attention_decode",
                                                               "select",
                                                               "gemm",
                                                               "sample",
                                                               "device",
                                                               "other"};

class StepClock {
 public:
  // Forgets all times; what follows belongs to `phase`.
  void Start(StepPhase phase) {
    seconds_ = {};
    phase_ = phase;
    since_ = std::chrono::steady_clock::now();
  }
  void Enter(StepPhase phase) {
    const auto now = std::chrono::steady_clock::now();
    seconds_[static_cast<size_t>(phase_)] += std::chrono::duration<double>(now - since_).count();
    phase_ = phase;
    since_ = now;
  }
  // Goes on after a while that counts for no phase.
  void Resume(StepPhase phase) {
    phase_ = phase;
    since_ = std::chrono::steady_clock::now();
  }
  // Time that was measured elsewhere.
  void Add(StepPhase phase, double seconds) { seconds_[static_cast<size_t>(phase)] += seconds; }
  // Indexed by StepPhase; complete after a last Enter.
  const std::array<double, kStepPhaseNames.size()>& seconds() const { return seconds_; }

 private:
  std::array<double, kStepPhaseNames.size()> seconds_{};
  StepPhase phase_ = StepPhase::kOther;
  std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
};

}  // namespace asynctls
