// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

namespace asynctls {
namespace {

using ::testing::HasSubstr;

TEST(BufferTest, ZeroFilledAndAligned) {
  const auto buffer = Buffer::Allocate(MemoryKind::kHost, 1000);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ(buffer->bytes(), 1000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(static_cast<char*>(buffer->data())[i], 0);
}

TEST(BufferTest, MovesItsMemory) {
  auto a = *Buffer::Allocate(MemoryKind::kHost, 10);
  void* data = a.data();
  Buffer b(std::move(a));
  EXPECT_EQ(b.data(), data);
  Buffer c = *Buffer::Allocate(MemoryKind::kHost, 20);
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(c.bytes(), 10);
}

TEST(BufferTest, ViewsAreWindowsOnIt) {
  const Buffer buffer = *Buffer::Allocate(MemoryKind::kHost, 64);
  const auto view = buffer.ViewAt<int32_t, 2>(16, {3, 4});
  view(2, 3) = 7;
  EXPECT_EQ(static_cast<int32_t*>(buffer.data())[4 + 11], 7);
  EXPECT_EQ(view[2][3], 7);
  EXPECT_EQ(view.Slice(1, 2)(1, 3), 7);
}

TEST(BufferTest, SaysWhatItCannotAllocate) {
  EXPECT_EQ(Buffer::Allocate(MemoryKind::kHost, -1).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto huge = Buffer::Allocate(MemoryKind::kHost, int64_t{1} << 60);
  EXPECT_EQ(huge.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(huge.status().message(), HasSubstr("1152921504606846976 bytes of host memory"));
  EXPECT_TRUE(Buffer::Allocate(MemoryKind::kHost, 0).ok());
}

}  // namespace
}  // namespace asynctls
