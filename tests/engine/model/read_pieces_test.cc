// SPDX-License-Identifier: Apache-2.0
#include "engine/model/read_pieces.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/testing/device_ops.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

using ::testing::HasSubstr;

// One tensor of 5 rows of 7 bytes, another of 70 MiB, more than one piece.
class ReadPiecesTest : public ::testing::Test {
 protected:
  static constexpr int64_t kLarge = int64_t{70} << 20;

  ReadPiecesTest() : large_(kLarge, 'x') {
    for (int64_t i = 0; i < kLarge; i += 1000) large_[static_cast<size_t>(i)] = char(i / 1000);
    TinyModel tiny;
    tiny.WriteTensorFile(path_,
                         {{"small", {"U8", {5, 7}, "0123456abcdefg.......ABCDEFGhijklmn"}},
                          {"large", {"U8", {kLarge}, large_}}});
    source_.emplace(*TensorSource::OpenFile(path_));
  }
  std::vector<ReadPiece> Pieces(char* small, char* large) {
    // Columns 2 to 4 of rows 1 to 3; all of the large one as rows of 1 MiB.
    return {{source_->Find("small"), 9, 3, 3, 7, small},
            {source_->Find("large"), 0, 70, 1 << 20, 1 << 20, large}};
  }

  TempDir dir_;
  std::string path_ = dir_.File("some.safetensors");
  std::string large_;
  std::optional<TensorSource> source_;
};

TEST_F(ReadPiecesTest, ReadsIntoHostMemory) {
  std::string small(9, ' '), large(kLarge, ' ');
  const absl::Status status =
      ReadPieces(Pieces(small.data(), large.data()), *source_, MemoryKind::kHost, {});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(small, "cde...CDE");
  EXPECT_TRUE(large == large_);
}

TEST_F(ReadPiecesTest, SendsToADevice) {
  const Buffer to = *Buffer::Allocate(MemoryKind::kDevice, kLarge + 9);
  char* small = static_cast<char*>(to.data());
  testing::DeviceOps ops;
  const absl::Status status = ReadPieces(Pieces(small, small + 9),
                                         *source_,
                                         MemoryKind::kDevice,
                                         [&](void* at, const void* from, int64_t bytes) {
                                           EXPECT_TRUE(testing::IsPinned(from));
                                           ops.Upload(at, from, bytes);
                                           ops.Wait();
                                         });
  ASSERT_TRUE(status.ok()) << status;
  const testing::DeviceAccess access;
  EXPECT_EQ(std::string(small, 9), "cde...CDE");
  EXPECT_TRUE(std::string(small + 9, kLarge) == large_);
}

TEST_F(ReadPiecesTest, NamesTheFileThatEnds) {
  std::filesystem::resize_file(path_, 1 << 20);
  std::string small(9, ' '), large(kLarge, ' ');
  const absl::Status status =
      ReadPieces(Pieces(small.data(), large.data()), *source_, MemoryKind::kHost, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the file has ended"));
}

}  // namespace
}  // namespace asynctls
