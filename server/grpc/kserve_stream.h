// SPDX-License-Identifier: Apache-2.0
// InferStream: one ModelStreamInfer call, with any number of requests one after another and beside
// each other. One answer is written at a time; each request has at most one waiting, the rest stays
// in its Generation. While kMaxStreamRequests are in progress nothing more is read, so a client
// that sends more waits in its own connection.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "server/frontend/call_info.h"
#include "server/frontend/frontend.h"

namespace asynctls {

inline constexpr size_t kMaxStreamRequests = 64;

// Held by gRPC until OnDone, and by the requests in progress.
class InferStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                          public std::enable_shared_from_this<InferStream> {
 public:
  // `status_errors`: the first error ends the call with its status; otherwise errors are messages.
  // `frontend` outlives the stream.
  static InferStream* Start(Frontend& frontend, CallInfo call, bool status_errors);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  class Writer;

  InferStream(Frontend& frontend, CallInfo call, bool status_errors)
      : frontend_(frontend), call_(std::move(call)), status_errors_(status_errors) {}

  void Begin();
  // By a writer: its message is ready. True: later its Sent is called, once, and not from within.
  // False: the call is ending.
  bool Post(const std::shared_ptr<Writer>& writer);
  // By a writer: nothing more will come of it.
  void Ended(const std::shared_ptr<Writer>& writer);
  // As Ended, for an error that ends the call.
  void Fail(const std::shared_ptr<Writer>& writer, const absl::Status& why);
  void CancelAll();
  // Reads, writes or finishes, whatever is due.
  void Advance();
  // Requires: mu_ held. gRPC never reacts from within StartWrite and StartRead.
  void WriteFirst();

  // Constant after construction.
  Frontend& frontend_;
  const CallInfo call_;
  const bool status_errors_;

  grpc::ByteBuffer request_;  // the read in flight, or the one just read

  std::mutex mu_;  // guards what follows
  std::shared_ptr<InferStream> self_;
  absl::flat_hash_set<std::shared_ptr<Writer>> writers_;  // in progress
  std::deque<std::shared_ptr<Writer>> ready_;             // the first is being written if writing_
  bool beginning_ = false;                                // a request was read and is being begun
  bool reading_ = false;
  bool writing_ = false;
  bool read_all_ = false;   // the client has sent its last request
  bool cancelled_ = false;  // by the client, or because of an error
  bool finished_ = false;
  absl::Status end_;
};

}  // namespace asynctls
