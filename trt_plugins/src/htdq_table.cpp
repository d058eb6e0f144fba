#include "htdq_table.h"

#include <limits>

namespace qvd {

HtdqTable make_htdq_table(float const* levels, float const* thresholds, int32_t n_levels) noexcept {
    HtdqTable table{};
    table.depth = 1;
    while ((1 << table.depth) < n_levels) {
        ++table.depth;
    }
    // Row r of the tree holds 2^r nodes; node p of it splits at the odd multiple 2p + 1 of the
    // row's half width, counted in levels.
    for (int32_t row = 0; row < table.depth; ++row) {
        int32_t const half_width = 1 << (table.depth - row - 1);
        for (int32_t p = 0; p < (1 << row); ++p) {
            int32_t const below = (2 * p + 1) * half_width - 1;
            table.tree[(1 << row) + p] =
                below < n_levels - 1 ? thresholds[below] : std::numeric_limits<float>::infinity();
        }
    }
    for (int32_t i = 0; i < (1 << table.depth); ++i) {
        table.levels[i] = levels[i < n_levels ? i : n_levels - 1];
    }
    return table;
}

}  // namespace qvd
