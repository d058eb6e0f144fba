// The attributes of an HTDQ node, validated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "htdq/table.h"

namespace qvd {

struct HtdqCodebook {
    std::vector<float> levels;
    std::vector<float> thresholds;
    HtdqTable table;
};

// An attribute as it arrives; `data` is null when it is missing.
struct FloatAttribute {
    float const* data;
    int64_t length;
};

// Fills the codebook, or returns false and says in one line what is wrong with the attributes.
bool make_codebook(FloatAttribute levels, FloatAttribute thresholds, HtdqCodebook& codebook,
                   std::string& error);

}  // namespace qvd
