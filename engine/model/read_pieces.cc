// SPDX-License-Identifier: Apache-2.0
#include "engine/model/read_pieces.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/base/logging.h"

namespace asynctls {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kPieceBytes = int64_t{32} << 20;
constexpr unsigned kThreads = 8;
constexpr double kGiB = 1 << 30;

// The same in pieces that fit a buffer.
std::vector<ReadPiece> Cut(const std::vector<ReadPiece>& pieces) {
  std::vector<ReadPiece> out;
  for (const ReadPiece& piece : pieces) {
    const int64_t most = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(1, piece.row_bytes));
    for (int64_t row = 0; row < piece.rows; row += most) {
      ReadPiece part = piece;
      part.offset += row * piece.stride;
      part.rows = std::min(most, piece.rows - row);
      part.to += row * piece.row_bytes;
      out.push_back(part);
    }
  }
  return out;
}

absl::Status Read(const TensorSource& source, const ReadPiece& piece, char* to) {
  if (piece.stride == piece.row_bytes) {
    return source.Read(*piece.tensor, piece.offset, piece.bytes(), to);
  }
  for (int64_t row = 0; row < piece.rows; ++row) {
    const absl::Status status = source.Read(*piece.tensor,
                                            piece.offset + row * piece.stride,
                                            piece.row_bytes,
                                            to + row * piece.row_bytes);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// The threads that read, and what they have told the caller's thread.
class Readers {
 public:
  Readers(std::vector<ReadPiece> pieces, const TensorSource& source)
      : pieces_(std::move(pieces)), source_(source) {
    for (const ReadPiece& piece : pieces_) total_ += piece.bytes();
  }

  // One thread for each buffer, or `count` that read in place. Returns when all is read and sent.
  absl::Status Run(const std::vector<Buffer>& buffers, size_t count, const SendBytes& send) {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < count; ++i) {
      char* buffer = buffers.empty() ? nullptr : static_cast<char*>(buffers[i].data());
      threads.emplace_back([this, buffer] { Loop(buffer); });
    }
    Follow(count, send);
    for (std::thread& thread : threads) thread.join();
    return status_;
  }

  int64_t total() const { return total_; }

 private:
  // A piece that has been read. Its thread waits until it is taken where it lies in a buffer.
  struct Filled {
    const ReadPiece* piece;
    const char* from;  // null: read in place
    bool* sent;
  };

  void Loop(char* buffer) {
    for (size_t i; (i = next_++) < pieces_.size();) {
      const ReadPiece& piece = pieces_[i];
      const absl::Status status = Read(source_, piece, buffer == nullptr ? piece.to : buffer);
      std::unique_lock lock(mu_);
      status_.Update(status);
      if (!status_.ok()) break;
      bool sent = buffer == nullptr;
      filled_.push_back({&piece, buffer, &sent});
      changed_.notify_all();
      changed_.wait(lock, [&] { return sent; });
    }
    const std::lock_guard lock(mu_);
    ++ended_;
    changed_.notify_all();
  }

  // Sends what the threads have read, until they have ended.
  void Follow(size_t count, const SendBytes& send) {
    const Clock::time_point begin = Clock::now();
    Clock::time_point told = begin;
    int64_t done = 0;
    std::unique_lock lock(mu_);
    for (;;) {
      changed_.wait(lock, [&] { return !filled_.empty() || ended_ == count; });
      if (filled_.empty()) return;
      std::vector<Filled> filled;
      filled.swap(filled_);
      lock.unlock();
      for (const Filled& f : filled) {
        if (f.from != nullptr) send(f.piece->to, f.from, f.piece->bytes());
        done += f.piece->bytes();
      }
      if (const auto now = Clock::now(); now - told > std::chrono::seconds(3)) {
        told = now;
        const double seconds = std::chrono::duration<double>(now - begin).count();
        spdlog::info("weights: {:.1f} of {:.1f} GiB, {:.2f} GiB/s",
                     static_cast<double>(done) / kGiB,
                     static_cast<double>(total_) / kGiB,
                     static_cast<double>(done) / kGiB / seconds);
      }
      lock.lock();
      for (const Filled& f : filled) {
        if (f.from != nullptr) *f.sent = true;
      }
      changed_.notify_all();
    }
  }

  const std::vector<ReadPiece> pieces_;
  const TensorSource& source_;
  int64_t total_ = 0;
  std::atomic<size_t> next_{0};
  std::mutex mu_;
  std::condition_variable changed_;
  std::vector<Filled> filled_;  // guarded by mu_, as all below
  size_t ended_ = 0;
  absl::Status status_;
};

}  // namespace

absl::Status ReadPieces(const std::vector<ReadPiece>& pieces,
                        const TensorSource& source,
                        MemoryKind kind,
                        const SendBytes& send) {
  Readers readers(Cut(pieces), source);
  const size_t count = std::clamp(std::thread::hardware_concurrency(), 1u, kThreads);
  std::vector<Buffer> buffers;
  int64_t longest = kPieceBytes;  // a row may be longer than a piece
  for (const ReadPiece& piece : pieces) longest = std::max(longest, piece.row_bytes);
  while (kind == MemoryKind::kDevice && buffers.size() < count) {
    absl::StatusOr<Buffer> buffer = Buffer::Allocate(MemoryKind::kPinned, longest);
    if (!buffer.ok()) return buffer.status();
    buffers.push_back(*std::move(buffer));
  }
  const Clock::time_point begin = Clock::now();
  const absl::Status status = readers.Run(buffers, count, send);
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const double gib = static_cast<double>(readers.total()) / kGiB;
  if (status.ok()) {
    spdlog::info(
        "weights: {:.2f} GiB read in {:.2f} s, {:.2f} s per GiB", gib, seconds, seconds / gib);
  }
  return status;
}

}  // namespace asynctls
