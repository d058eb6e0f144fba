#include "htdq/table.h"

#include <limits>

namespace qvd {
namespace {

// The number that the `depth` bits of the cell make when read backwards.
int32_t rank_of(int32_t cell, int32_t depth) noexcept {
    int32_t rank = 0;
    for (int32_t bit = 0; bit < depth; ++bit) {
        rank = 2 * rank + (cell >> bit & 1);
    }
    return rank;
}

}  // namespace

HtdqTable make_htdq_table(float const* levels, float const* thresholds, int32_t n_levels) noexcept {
    HtdqTable table{};
    table.depth = 1;
    while ((1 << table.depth) < n_levels) {
        ++table.depth;
    }
    table.cells[kMaxLevels] = levels[0];  // nothing is below the first level
    for (int32_t cell = 1; cell < (1 << table.depth); ++cell) {
        int32_t const rank = rank_of(cell, table.depth);
        bool const exists = rank < n_levels;
        table.cells[cell] = exists ? thresholds[rank - 1] : std::numeric_limits<float>::infinity();
        table.cells[kMaxLevels + cell] = levels[exists ? rank : n_levels - 1];
    }
    return table;
}

}  // namespace qvd
