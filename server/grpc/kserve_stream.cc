// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/kserve_stream.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/time/clock.h"
#include "server/grpc/grpc_call.h"
#include "server/grpc/grpc_status.h"
#include "server/grpc/kserve_reply.h"
#include "server/grpc/kserve_request.h"

namespace asynctls {

// One request of the stream. Its message is its own until it is posted, then the stream's until
// Sent.
class InferStream::Writer final : public ResponseWriter,
                                  public std::enable_shared_from_this<InferStream::Writer> {
 public:
  Writer(std::shared_ptr<InferStream> stream, std::string id, const InferRequest& request)
      : stream_(std::move(stream)), id_(std::move(id)), reply_(request) {}

  bool Write(v1::GenerateResponse& response) override {
    message_.Clear();
    if (!reply_.Take(response, *message_.mutable_infer_response())) return true;
    SerializeMessage(message_, bytes_);
    return !stream_->Post(shared_from_this());  // refused: the generation learns of it by itself
  }

  void Finish(const absl::Status& status) override {
    if (status.ok()) return stream_->Ended(shared_from_this());
    const absl::Status error = ToInferError(status);
    if (stream_->status_errors_) return stream_->Fail(shared_from_this(), error);
    last_ = true;
    message_.Clear();
    message_.set_error_message(ToGrpcStatus(error).error_message());
    message_.mutable_infer_response()->set_id(id_);
    SerializeMessage(message_, bytes_);
    if (!stream_->Post(shared_from_this())) stream_->Ended(shared_from_this());
  }

  // The message has been written, or never will be.
  void Sent(bool ok) {
    if (last_) {
      stream_->Ended(shared_from_this());
    } else {
      generation()->WriteDone(ok);
    }
  }

  void ClientGone() {
    if (generation() != nullptr) generation()->ClientGone();
  }

  const grpc::ByteBuffer& bytes() const { return bytes_; }

  bool begun = false;  // guarded by the stream's lock: ClientGone may be called

 private:
  const std::shared_ptr<InferStream> stream_;
  const std::string id_;
  InferReply reply_;
  inference::ModelStreamInferResponse message_;
  grpc::ByteBuffer bytes_;
  bool last_ = false;
};

InferStream* InferStream::Start(Frontend& frontend, CallInfo call, bool status_errors) {
  std::shared_ptr<InferStream> stream =
      absl::WrapUnique(new InferStream(frontend, std::move(call), status_errors));
  stream->self_ = stream;
  stream->Advance();
  return stream.get();
}

void InferStream::OnReadDone(bool ok) {
  bool begin;
  {
    std::lock_guard lock(mu_);
    reading_ = false;
    if (!ok) read_all_ = true;
    begin = beginning_ = ok && !cancelled_;
  }
  if (begin) Begin();
  Advance();
}

void InferStream::Begin() {
  CallInfo call = call_;
  inference::ModelInferRequest message;
  const absl::Status parsed = ParseMessage(request_, message);
  if (!parsed.ok()) message.Clear();  // its id may be anything
  absl::StatusOr<InferRequest> request = parsed.ok() ? FromInferRequest(message) : parsed;
  const auto writer = std::make_shared<Writer>(
      shared_from_this(), message.id(), request.ok() ? *request : InferRequest());
  {
    std::lock_guard lock(mu_);
    writers_.insert(writer);
  }
  if (request.ok()) {
    call.deadline = std::min(call.deadline, absl::Now() + request->timeout);
    frontend_.Generate(
        std::make_shared<const v1::GenerateRequest>(std::move(request->request)), call, writer);
  } else {
    frontend_.Refuse("", call, request.status(), *writer);
  }
  bool gone;
  {
    std::lock_guard lock(mu_);
    writer->begun = true;
    beginning_ = false;
    gone = cancelled_;
  }
  if (gone) writer->ClientGone();
}

bool InferStream::Post(const std::shared_ptr<Writer>& writer) {
  std::lock_guard lock(mu_);
  if (cancelled_) return false;
  ready_.push_back(writer);
  if (!writing_) WriteFirst();
  return true;
}

void InferStream::WriteFirst() {
  writing_ = true;
  StartWrite(&ready_.front()->bytes());
}

void InferStream::Ended(const std::shared_ptr<Writer>& writer) {
  {
    std::lock_guard lock(mu_);
    writers_.erase(writer);
  }
  Advance();
}

void InferStream::Fail(const std::shared_ptr<Writer>& writer, const absl::Status& why) {
  {
    std::lock_guard lock(mu_);
    if (!cancelled_) end_ = why;
    cancelled_ = true;
    writers_.erase(writer);
  }
  CancelAll();
  Advance();
}

void InferStream::OnCancel() {
  {
    std::lock_guard lock(mu_);
    if (!cancelled_) end_ = absl::CancelledError("the client has gone");
    cancelled_ = true;
  }
  CancelAll();
  Advance();
}

void InferStream::CancelAll() {
  std::vector<std::shared_ptr<Writer>> writers;
  {
    std::lock_guard lock(mu_);
    for (const auto& writer : writers_) {
      if (writer->begun) writers.push_back(writer);
    }
  }
  for (const auto& writer : writers) writer->ClientGone();
}

void InferStream::OnWriteDone(bool ok) {
  std::shared_ptr<Writer> writer;
  {
    std::lock_guard lock(mu_);
    writing_ = false;
    writer = std::move(ready_.front());
    ready_.pop_front();
  }
  writer->Sent(ok);
  Advance();
}

void InferStream::Advance() {
  std::unique_lock lock(mu_);
  if (finished_) return;
  // What is ready and will never be written is handed back, so that its request can end.
  while (cancelled_ && !writing_ && !ready_.empty()) {
    const std::shared_ptr<Writer> writer = std::move(ready_.front());
    ready_.pop_front();
    lock.unlock();
    writer->Sent(false);
    lock.lock();
    if (finished_) return;
  }
  if (!writing_ && !ready_.empty()) WriteFirst();
  const bool stop = read_all_ || cancelled_;
  if (!stop && !reading_ && !beginning_ && writers_.size() < kMaxStreamRequests) {
    reading_ = true;
    StartRead(&request_);
  }
  if (stop && !beginning_ && !writing_ && ready_.empty() && writers_.empty()) {
    finished_ = true;
    const absl::Status end = end_;
    lock.unlock();
    Finish(ToGrpcStatus(end));
  }
}

void InferStream::OnDone() {
  std::shared_ptr<InferStream> last;
  std::lock_guard lock(mu_);
  last = std::move(self_);
}

}  // namespace asynctls
