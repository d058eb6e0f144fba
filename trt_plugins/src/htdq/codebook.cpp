#include "htdq/codebook.h"

#include <cmath>

namespace qvd {
namespace {

// What is wrong with the values of one attribute; empty when nothing is.
std::string check_values(char const* name, FloatAttribute values) {
    for (int64_t i = 0; i < values.length; ++i) {
        if (!std::isfinite(values.data[i])) {
            return "attribute '" + std::string(name) + "' is not finite at index " +
                   std::to_string(i);
        }
        if (i > 0 && values.data[i] < values.data[i - 1]) {
            return "attribute '" + std::string(name) + "' does not ascend at index " +
                   std::to_string(i);
        }
    }
    return "";
}

std::string check(FloatAttribute levels, FloatAttribute thresholds) {
    if (levels.data == nullptr || levels.length == 0) {
        return "attribute 'levels' is missing or empty";
    }
    if (levels.length < kMinLevels || levels.length > kMaxLevels) {
        return "attribute 'levels' must have " + std::to_string(kMinLevels) + " to " +
               std::to_string(kMaxLevels) + " values, not " + std::to_string(levels.length);
    }
    if (thresholds.data == nullptr || thresholds.length == 0) {
        return "attribute 'thresholds' is missing or empty";
    }
    if (thresholds.length != levels.length - 1) {
        return "attribute 'thresholds' must have one value fewer than 'levels' (" +
               std::to_string(levels.length - 1) + "), not " + std::to_string(thresholds.length);
    }
    std::string const problem = check_values("levels", levels);
    return problem.empty() ? check_values("thresholds", thresholds) : problem;
}

}  // namespace

bool make_codebook(FloatAttribute levels, FloatAttribute thresholds, HtdqCodebook& codebook,
                   std::string& error) {
    error = check(levels, thresholds);
    if (!error.empty()) {
        return false;
    }
    codebook.levels.assign(levels.data, levels.data + levels.length);
    codebook.thresholds.assign(thresholds.data, thresholds.data + thresholds.length);
    codebook.table =
        make_htdq_table(levels.data, thresholds.data, static_cast<int32_t>(levels.length));
    return true;
}

}  // namespace qvd
