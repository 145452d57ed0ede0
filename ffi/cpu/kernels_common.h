// SPDX-License-Identifier: Apache-2.0
// All headers that kernels/*.inc need, to come before the compiler's target is set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/activation_math.h"
#include "core/problem.h"
#include "cpu/convert.h"
#include "cpu/kernels.h"
#include "cpu/tiling.h"
