// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/mirror.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/ref/ref_ops.h"
#include "tests/testing/device_ops.h"

namespace asynctls {
namespace {

using testing::DeviceAccess;
using testing::DeviceOps;

TEST(MirrorTest, IsOneArenaInHostMemory) {
  const Mirror mirror = *Mirror::Create(MemoryKind::kHost, 100);
  const View<int32_t, 1> view = mirror.host().ViewAt<int32_t, 1>(8, {4});
  EXPECT_EQ(mirror.Device(view).data, view.data);
  std::fill(view.begin(), view.end(), 7);
  RefOps ops;
  mirror.Upload(ops, 0, 100);
  mirror.Download(ops, view);
  EXPECT_EQ(view[3], 7);
}

TEST(MirrorTest, BringsPiecesToADeviceAndBack) {
  const Mirror mirror = *Mirror::Create(MemoryKind::kDevice, 64);
  const View<int32_t, 1> host = mirror.host().ViewAt<int32_t, 1>(0, {16});
  const View<int32_t, 1> device = mirror.Device(host);
  ASSERT_NE(device.data, host.data);
  for (int i = 0; i < 16; ++i) host[i] = i;
  DeviceOps ops;
  mirror.Upload(ops, 0, 64);
  ops.Wait();
  std::fill(host.begin(), host.end(), -1);
  mirror.Upload(ops, host.Slice(4, 2));
  ops.Wait();
  {
    const DeviceAccess access;
    EXPECT_EQ(device[3], 3);
    EXPECT_EQ(device[4], -1);
    EXPECT_EQ(device[6], 6);
    device[9] = 90;
  }
  mirror.Download(ops, host.Slice(8, 4));
  ops.Wait();
  EXPECT_THAT(std::vector<int32_t>(host.begin() + 7, host.begin() + 13),
              ::testing::ElementsAre(-1, 8, 90, 10, 11, -1));
  EXPECT_EQ(mirror.Device(View<int32_t, 1>()).data, nullptr);
}

TEST(MirrorTest, ATwinHasTheSameMemoryOnTheDeviceOnly) {
  const Mirror mirror = *Mirror::Create(MemoryKind::kDevice, 16);
  const Mirror twin = *mirror.Twin();
  const View<int32_t, 1> first = mirror.host().ViewAt<int32_t, 1>(0, {4});
  const View<int32_t, 1> second = twin.host().ViewAt<int32_t, 1>(0, {4});
  EXPECT_EQ(mirror.Device(first).data, twin.Device(second).data);
  DeviceOps ops;
  std::fill(first.begin(), first.end(), 1);
  mirror.Upload(ops, first);
  ops.Mark(0);
  std::fill(second.begin(), second.end(), 2);  // while the first one's copy is on its way
  twin.Upload(ops, second);
  mirror.Download(ops, first);
  ops.WaitFor(0);
  {
    const DeviceAccess access;
    EXPECT_EQ(mirror.Device(first)[0], 1);
  }
  ops.Wait();
  EXPECT_EQ(first[0], 2);
}

TEST(MirrorTest, LendsWhatADeviceCannotRead) {
  const std::vector<int32_t> values = {1, 2, 3};
  const View<const int32_t, 1> view(values.data(), {3});
  RefOps host;
  EXPECT_EQ(Lend(host, *Buffer::Allocate(MemoryKind::kHost, 12), view).data, values.data());
  DeviceOps ops;
  const Buffer arena = *Buffer::Allocate(MemoryKind::kDevice, 12);
  const View<const int32_t, 1> lent = Lend(ops, arena, view);
  ops.Wait();
  const DeviceAccess access;
  EXPECT_EQ(lent.data, arena.data());
  EXPECT_EQ(lent[2], 3);
}

}  // namespace
}  // namespace asynctls
