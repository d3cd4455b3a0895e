// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/encode_keys.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/encode_keys.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/exact-inl.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {

void Products(const float* key, const float* table, int64_t r, int64_t d_count, float* product) {
  ExactProducts(key, table, r, d_count, product);
}

}  // namespace HWY_NAMESPACE
}  // namespace asynctls
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {
HWY_EXPORT(Products);

void EncodeKeyCpu(
    const float* key, const KeyCodeTable& table, int g, float* product, uint8_t* code) {
  const int64_t d_count = table.encode.dim(1), r = table.encode.dim(2);
  HWY_DYNAMIC_DISPATCH(Products)(key, table.encode[g].data, r, d_count, product);
  const float* offset = table.offset[g].data;
  for (int64_t c = 0; c < r; ++c) code[c] = CodeOf(product[c] - offset[c]);
}

}  // namespace asynctls
#endif  // HWY_ONCE
