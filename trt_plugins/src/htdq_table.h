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
// The thresholds are nodes of a binary tree in breadth-first order: node 1 is the middle threshold,
// nodes 2n and 2n + 1 are the halves left and right of node n. The sorted array would put the nodes
// of one step a power of two apart, all on the same shared-memory banks; here they are neighbours.
// Trivially copyable and 2052 bytes, so that it travels as a kernel parameter.
struct HtdqTable {
    int32_t depth;             // the least depth with 2^depth >= number of levels
    float tree[kMaxLevels];    // [1, 2^depth): thresholds; missing ones are +Inf; 0 is not used
    float levels[kMaxLevels];  // [0, 2^depth): levels; the last one repeated
};

// Lays out 2 to 256 levels and the thresholds between them (one fewer, ascending, finite).
HtdqTable make_htdq_table(float const* levels, float const* thresholds, int32_t n_levels) noexcept;

// One step of the search, down from a node that starts at 1.
QVD_HOST_DEVICE inline int32_t htdq_step(float const* tree, int32_t node, float x) {
    return 2 * node + static_cast<int32_t>(!(x <= tree[node]));
}

// Index of the level of x. NaN and what is above all thresholds may get a repeated last level.
QVD_HOST_DEVICE inline int32_t htdq_index(float const* tree, int32_t depth, float x) {
    int32_t node = 1;
    for (int32_t step = 0; step < depth; ++step) {
        node = htdq_step(tree, node, x);
    }
    return node - (1 << depth);
}

}  // namespace qvd
