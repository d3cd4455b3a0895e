// SPDX-License-Identifier: Apache-2.0
// Gloo reports failures by exceptions; they end here. Sums are made from an all-gather rather than
// Gloo's all-reduce: half the bytes for two ranks (bf16 instead of fp32 travels), and the order of
// additions is that of the ranks, not that of a ring's chunks, whose borders depend on the batch.
#include "engine/parallel/gloo_communicator.h"

#include <gloo/allgather.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>

#include "absl/strings/str_cat.h"

namespace asynctls {
namespace {

// Runs `call`, turning an exception into a status.
template <typename F>
absl::Status Guard(const char* what, F&& call) {
  try {
    call();
    return absl::OkStatus();
  } catch (const std::exception& e) {
    return absl::UnavailableError(absl::StrCat("Gloo ", what, ": ", e.what()));
  }
}

}  // namespace

absl::StatusOr<std::string> GlooCommunicator::MakeRendezvous() {
  std::error_code error;
  const std::filesystem::path base = std::filesystem::temp_directory_path(error);
  std::string path = ((error ? "/tmp" : base) / "asynctls-ranks-XXXXXX").string();
  if (mkdtemp(path.data()) == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": cannot be created: ", std::strerror(errno)));
  }
  return path;
}

absl::StatusOr<std::unique_ptr<GlooCommunicator>> GlooCommunicator::Connect(
    const Shard& shard, const std::string& rendezvous, absl::Duration limit) {
  const absl::Status checked = shard.Check("ranks", shard.size);
  if (!checked.ok()) return checked;
  if (!std::filesystem::is_directory(rendezvous)) {
    return absl::InvalidArgumentError(
        absl::StrCat("rendezvous '", rendezvous, "' is not a folder"));
  }
  std::shared_ptr<gloo::rendezvous::Context> context;
  const absl::Status connected = Guard("connect", [&] {
    gloo::transport::tcp::attr attr;
    attr.hostname = "127.0.0.1";
    std::shared_ptr<gloo::transport::Device> device = gloo::transport::tcp::CreateDevice(attr);
    gloo::rendezvous::FileStore store(rendezvous);
    context = std::make_shared<gloo::rendezvous::Context>(shard.rank, shard.size);
    context->setTimeout(absl::ToChronoMilliseconds(limit));
    context->connectFullMesh(store, device);
    gloo::BarrierOptions barrier(context);
    gloo::barrier(barrier);
  });
  if (!connected.ok()) return connected;
  std::error_code ignored;
  if (shard.rank == 0) std::filesystem::remove_all(rendezvous, ignored);
  return std::unique_ptr<GlooCommunicator>(new GlooCommunicator(shard, std::move(context)));
}

GlooCommunicator::GlooCommunicator(const Shard& shard, std::shared_ptr<gloo::Context> context)
    : shard_(shard), context_(std::move(context)) {}

absl::Status GlooCommunicator::Gather(const void* data, int64_t bytes) {
  const size_t n = static_cast<size_t>(bytes);
  if (gathered_.size() < n * shard_.size) gathered_.resize(n * shard_.size);
  return Guard("all-gather", [&] {
    gloo::AllgatherOptions options(context_);
    options.setInput(static_cast<char*>(const_cast<void*>(data)), n);
    options.setOutput(gathered_.data(), n * shard_.size);
    gloo::allgather(options);
  });
}

absl::Status GlooCommunicator::AllReduceSum(View<bf16, 1> x) {
  if (x.empty()) return absl::OkStatus();
  const absl::Status status = Gather(x.data, x.bytes());
  if (!status.ok()) return status;
  const bf16* all = reinterpret_cast<const bf16*>(gathered_.data());
  const int64_t n = x.dim(0);
  for (int64_t i = 0; i < n; ++i) {
    float sum = 0;
    for (int r = 0; r < shard_.size; ++r) sum += ToFloat(all[r * n + i]);
    x.data[i] = ToBf16(sum);
  }
  return absl::OkStatus();
}

absl::Status GlooCommunicator::AllGather(View<const float, 2> part, View<float, 2> all) {
  if (part.empty()) return absl::OkStatus();
  assert(all.dim(0) == part.dim(0) && all.dim(1) == part.dim(1) * shard_.size);
  const absl::Status status = Gather(part.data, part.bytes());
  if (!status.ok()) return status;
  const float* from = reinterpret_cast<const float*>(gathered_.data());
  const int64_t rows = part.dim(0);
  const int64_t columns = part.dim(1);
  for (int64_t row = 0; row < rows * shard_.size; ++row) {
    float* to = all.data + (row % rows) * all.dim(1) + (row / rows) * columns;
    std::memcpy(to, from + row * columns, static_cast<size_t>(columns) * sizeof(float));
  }
  return absl::OkStatus();
}

absl::Status GlooCommunicator::Broadcast(View<int32_t, 1> x) {
  if (x.empty()) return absl::OkStatus();
  return Guard("broadcast", [&] {
    gloo::BroadcastOptions options(context_);
    options.setOutput(x.data, static_cast<size_t>(x.dim(0)));
    options.setRoot(0);
    gloo::broadcast(options);
  });
}

}  // namespace asynctls
