// SPDX-License-Identifier: Apache-2.0
// ResponseWriter: where the answers to one request go. Each protocol implements it; the front end
// speaks asynctls.v1 messages and knows nothing of what is behind.
#pragma once

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "asynctls/v1/generation.pb.h"

namespace asynctls {

class Generation;

class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;

  // By the front end, before the first Write, where the request is not refused at once.
  void Attach(std::shared_ptr<Generation> generation) { generation_ = std::move(generation); }

  // One message at a time, in order, from any thread. True: the next may follow at once. False: the
  // write is under way, and Generation::WriteDone will be called once when it is over (never from
  // within Write). `response` may be moved from.
  virtual bool Write(v1::GenerateResponse& response) = 0;

  // The last call. OK: every sequence has had its Finished. Otherwise an error, and none may have.
  virtual void Finish(const absl::Status& status) = 0;

 protected:
  // Null where the request was refused at once.
  Generation* generation() const { return generation_.get(); }

 private:
  std::shared_ptr<Generation> generation_;
};

}  // namespace asynctls
