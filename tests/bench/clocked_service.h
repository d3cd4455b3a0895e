// SPDX-License-Identifier: Apache-2.0
// The native Generate on a port of its own, noting when gRPC is through with each write: the
// server's part of the way of a token, without any client's.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "server/grpc/grpc_call.h"
#include "server/grpc/native_service.h"
#include "tests/testing/clock_worker.h"

namespace asynctls::testing {

// Microseconds from a token's step to the end of its write, while `counting`.
struct WriteTimes {
  std::atomic<bool> counting{false};
  std::mutex mu;
  std::vector<float> us;  // guarded by mu

  // Of what was noted so far; 0 without any.
  float Quantile(double q) {
    std::lock_guard lock(mu);
    std::sort(us.begin(), us.end());
    return us.empty() ? 0 : us[static_cast<size_t>(q * static_cast<double>(us.size() - 1))];
  }
};

class ClockedCall final : public StreamingCall<v1::GenerateResponse> {
 public:
  explicit ClockedCall(WriteTimes& times) : times_(times) {}

  void OnWriteDone(bool ok) override {
    if (times_.counting) {
      std::lock_guard lock(times_.mu);
      for (uint32_t stamp : stamps_) times_.us.push_back(ClockWorker::MicrosSince(stamp));
    }
    StreamingCall::OnWriteDone(ok);
  }

 protected:
  bool Convert(v1::GenerateResponse& response, v1::GenerateResponse& out) override {
    out.Swap(&response);
    stamps_.assign(out.delta().token_ids().begin(), out.delta().token_ids().end());
    return true;
  }

 private:
  WriteTimes& times_;
  std::vector<uint32_t> stamps_;  // of the write in flight
};

class ClockedService final
    : public v1::GenerationService::WithRawCallbackMethod_Generate<v1::GenerationService::Service> {
 public:
  ClockedService(Frontend& frontend, WriteTimes& times) : frontend_(frontend), times_(times) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* bytes) override {
    const auto call = std::make_shared<ClockedCall>(times_);
    call->Hold(call);
    auto request = std::make_shared<v1::GenerateRequest>();
    ASYNCTLS_CHECK(ParseMessage(*bytes, *request).ok());
    frontend_.Generate(std::move(request), CallInfoFrom(*context, Protocol::kGrpc), call);
    return call.get();
  }

 private:
  Frontend& frontend_;
  WriteTimes& times_;
};

}  // namespace asynctls::testing
