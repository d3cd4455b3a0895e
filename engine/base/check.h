// SPDX-License-Identifier: Apache-2.0
// CHECK: an assertion that stays in release builds, for what only our own bugs can break. Used off
// the hot path; kernels use assert().
#pragma once

#include <cstdio>
#include <cstdlib>

#define ASYNCTLS_CHECK(condition)                                                        \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)
