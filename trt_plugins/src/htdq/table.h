// The HTDQ codebook and its lookup, shared by the kernel and by plain C++.
//
//     y = levels[number of thresholds that are NOT at or above x]
//
// which is levels[numpy.searchsorted(thresholds, x)]: a value on a threshold belongs to the level
// below it, and NaN, which is not at or below anything, gets the last level.
#pragma once

#include <cstdint>

#if defined(__FAST_MATH__)
#error "HTDQ compares NaN, infinities and subnormal numbers: build it without fast math"
#endif

#if defined(__CUDACC__)
#define QVD_HOST_DEVICE __host__ __device__
#else
#define QVD_HOST_DEVICE
#endif

namespace qvd {

constexpr int32_t kMinLevels = 2;
constexpr int32_t kMaxLevels = 256;
constexpr int32_t kMaxDepth = 8;

// A codebook laid out for a branch-free search of `depth` steps, the same for every input.
//
// Cell i < 2^depth holds a threshold, and cell kMaxLevels + i the level above it, both of the rank
// that i's `depth` bits, read backwards, make. The thresholds are then a binary tree, breadth
// first: step k compares with one of the 2^k neighbours from cell 2^k on, where a sorted array
// would have them a power of two apart, all on the same shared-memory banks; and a step to the
// right adds 2^k, because bit k of the cell is the rank's next lower bit.
// Trivially copyable and 2052 bytes, so that it travels as a kernel parameter.
struct HtdqTable {
    int32_t depth;                // the least depth with 2^depth >= number of levels
    float cells[2 * kMaxLevels];  // missing thresholds are +Inf, missing levels the last one
};

// Lays out 2 to 256 levels and the thresholds between them (one fewer, ascending, finite).
HtdqTable make_htdq_table(float const* levels, float const* thresholds, int32_t n_levels) noexcept;

// Step `step` of the search, which starts at the first cell: towards the threshold below x.
QVD_HOST_DEVICE inline float const* htdq_step(float const* cell, int32_t step, float x) {
    int32_t const row = 1 << step;
    return x <= cell[row] ? cell : cell + row;
}

// The level at the end of the search.
QVD_HOST_DEVICE inline float htdq_level(float const* cell) {
    return cell[kMaxLevels];
}

// NaN and what is above all thresholds may end at different cells, all with the last level.
QVD_HOST_DEVICE inline float const* htdq_search(float const* cells, int32_t depth, float x) {
    float const* cell = cells;
    for (int32_t step = 0; step < depth; ++step) {
        cell = htdq_step(cell, step, x);
    }
    return cell;
}

}  // namespace qvd
