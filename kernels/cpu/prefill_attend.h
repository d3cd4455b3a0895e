// SPDX-License-Identifier: Apache-2.0
// The two ways to attend to a prompt, chosen by what the machine has
// (kernels/cpu/prefill_attend.cc). Both walk the keys in tiles with fixed absolute borders and keep
// a running maximum and sum per row, so a row's result depends neither on the chunk it came in nor
// on the thread.
#pragma once

#include "kernels/cpu/thread_team.h"
#include "kernels/ops.h"

namespace asynctls {

namespace amx {
// Requires: Usable(), head dim a multiple of 32.
void PrefillAttend(const PrefillAttendArgs& a, ThreadTeam& team);
}  // namespace amx

// Each row by AttendRange, any machine.
void PrefillAttendByRow(const PrefillAttendArgs& a, ThreadTeam& team);

}  // namespace asynctls
