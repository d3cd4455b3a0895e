// SPDX-License-Identifier: Apache-2.0
// DeviceOps: the reference ops on a make-believe device, as strict as a real one: memory of its
// own, everything put on a stream that runs when it is waited for, as far as that is, and not
// before, and sequences of ops that are replayed with the arguments they were first called with.
// Its clock counts what the stream has run, in microseconds. For programs that link fake_device.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "kernels/ref/ref_ops.h"
#include "tests/testing/device_memory.h"

namespace asynctls::testing {

class DeviceOps {
 public:
  static constexpr MemoryKind kMemory = MemoryKind::kDevice;
  static constexpr bool kSplitPasses = true;

  std::string Describe() const { return "make-believe device"; }
  void Prepare(Matrix&) {}
  void Embed(const EmbedArgs& a) { Put(&RefOps::Embed, a); }
  void RmsNorm(const RmsNormArgs& a) { Put(&RefOps::RmsNorm, a); }
  void Gemm(const GemmArgs& a) { Put(&RefOps::Gemm, a); }
  void Logits(const LogitsArgs& a) { Put(&RefOps::Logits, a); }
  void RopeTable(const RopeTableArgs& a) { Put(&RefOps::RopeTable, a); }
  void SwiGlu(const SwiGluArgs& a) { Put(&RefOps::SwiGlu, a); }
  void CopyRows(const CopyRowsArgs& a) { Put(&RefOps::CopyRows, a); }
  void AppendKv(const AppendKvArgs& a) { Put(&RefOps::AppendKv, a); }
  void PrefillAttend(const PrefillAttendArgs& a) { Put(&RefOps::PrefillAttend, a); }
  void DecodeAttend(const DecodeAttendArgs& a) { Put(&RefOps::DecodeAttend, a); }
  void SelectBlocks(const SelectBlocksArgs& a) { Put(&RefOps::SelectBlocks, a); }
  void SelectTokens(const SelectTokensArgs& a) { Put(&RefOps::SelectTokens, a); }
  void SparseAttend(const SparseAttendArgs& a) { Put(&RefOps::SparseAttend, a); }
  void CountBlocks(const CountBlocksArgs& a) { Put(&RefOps::CountBlocks, a); }
  void StartHistory(const StartHistoryArgs& a) { Put(&RefOps::StartHistory, a); }
  void Sample(const SampleArgs& a) { Put(&RefOps::Sample, a); }
  void LogProbs(const LogProbsArgs& a) { Put(&RefOps::LogProbs, a); }
  void Moments(const MomentsArgs& a) { Put(&RefOps::Moments, a); }
  void FillRandom(const FillRandomArgs& a) { Put(&RefOps::FillRandom, a); }

  void Upload(void* device, const void* host, int64_t bytes) {
    EXPECT_FALSE(recording_) << "upload inside Replay";
    const auto size = static_cast<size_t>(bytes);
    if (IsPinned(host)) {
      stream_.push_back([=] { std::memcpy(device, host, size); });
    } else {
      const char* from = static_cast<const char*>(host);
      stream_.push_back([device, copy = std::string(from, size)] {
        std::memcpy(device, copy.data(), copy.size());
      });
    }
  }
  void Download(void* host, const void* device, int64_t bytes) {
    EXPECT_FALSE(recording_) << "download inside Replay";
    stream_.push_back([=] { std::memcpy(host, device, static_cast<size_t>(bytes)); });
    if (!IsPinned(host)) Wait();
  }
  void Wait() {
    EXPECT_FALSE(recording_) << "wait inside Replay";
    const DeviceAccess access;
    while (!stream_.empty()) RunNext();
  }
  void Mark(int i) {
    EXPECT_FALSE(recording_) << "mark inside Replay";
    EXPECT_TRUE(i >= 0 && i < kMarks);
    marks_[i].reset();
    stream_.push_back([this, i] { marks_[i] = clock_; });
  }
  void WaitFor(int i) {
    EXPECT_FALSE(recording_) << "wait inside Replay";
    const DeviceAccess access;
    while (!marks_[i].has_value() && !stream_.empty()) RunNext();
  }
  // It is done as soon as somebody waits for it.
  void WhenDone(int, const std::function<void()>& f) { f(); }
  double Seconds(int i, int j) const { return 1e-6 * (marks_[j].value() - marks_[i].value()); }
  void Replay(uint64_t key, const std::function<void()>& ops) {
    const auto [found, fresh] = graphs_.try_emplace(key);
    if (fresh) {
      std::deque<std::function<void()>> before;
      before.swap(stream_);
      recording_ = true;
      ops();
      recording_ = false;
      found->second.swap(stream_);
      stream_.swap(before);
    } else {
      ++replayed_;
    }
    stream_.insert(stream_.end(), found->second.begin(), found->second.end());
  }

  size_t graphs() const { return graphs_.size(); }
  int replayed() const { return replayed_; }

 private:
  template <typename Args>
  void Put(void (RefOps::*op)(const Args&), const Args& a) {
    stream_.push_back([op, a] { (RefOps().*op)(a); });
  }

  void RunNext() {
    const std::function<void()> item = std::move(stream_.front());
    stream_.pop_front();
    item();
    ++clock_;
  }

  std::deque<std::function<void()>> stream_;
  std::map<uint64_t, std::deque<std::function<void()>>> graphs_;
  std::optional<int> marks_[kMarks];  // when they were reached
  int clock_ = 0;
  bool recording_ = false;
  int replayed_ = 0;
};
static_assert(Ops<DeviceOps> && !BoundOps<DeviceOps>);

}  // namespace asynctls::testing
