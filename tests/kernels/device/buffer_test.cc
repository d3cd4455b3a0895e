// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

namespace asynctls {
namespace {

using ::testing::HasSubstr;

TEST(BufferTest, IsZeroAlignedAndWritable) {
  for (int64_t bytes : {0, 1, 63, 4096, 1 << 20}) {
    auto buffer = Buffer::Allocate(MemoryKind::kHost, bytes);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_EQ(buffer->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    char* data = static_cast<char*>(buffer->data());
    EXPECT_TRUE(std::all_of(data, data + bytes, [](char c) { return c == 0; }));
    std::fill(data, data + bytes, char{7});
  }
}

TEST(BufferTest, MovesItsMemory) {
  Buffer a = Buffer::Allocate(MemoryKind::kHost, 100).value();
  void* data = a.data();
  Buffer b = std::move(a);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(a.data(), nullptr);  // NOLINT(bugprone-use-after-move): what a moved-from one holds
  EXPECT_EQ(a.bytes(), 0);
  a = std::move(b);
  EXPECT_EQ(a.data(), data);
}

TEST(BufferTest, ViewsAreRowMajorWindows) {
  Buffer buffer = Buffer::Allocate(MemoryKind::kHost, 8 + 2 * 3 * 4 * 4).value();
  View<int32_t, 3> view = buffer.ViewAt<int32_t, 3>(8, {2, 3, 4});
  for (int i = 0; i < 24; ++i) view.data[i] = i;
  EXPECT_EQ(view(1, 2, 3), 23);
  EXPECT_EQ(view[1](0, 1), 13);
  EXPECT_EQ(view.Slice(1, 1)(0, 2, 0), 20);
  EXPECT_EQ((View<const int32_t, 3>(view).bytes()), 96);
  EXPECT_TRUE(view.Slice(2, 0).empty());
}

TEST(BufferTest, SaysWhatCannotBeHad) {
  auto huge = Buffer::Allocate(MemoryKind::kHost, int64_t{1} << 60);
  EXPECT_EQ(huge.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(huge.status().message(), HasSubstr("1152921504606846976 bytes of host memory"));
  EXPECT_EQ(Buffer::Allocate(MemoryKind::kHost, -1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace asynctls
