// The codebook as TensorRT's plugin fields.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <string>

#include "htdq/codebook.h"

namespace qvd {

using CodebookFields = std::array<nvinfer1::PluginField, 2>;

// The attributes by name and type, without values.
CodebookFields field_names();

// The attributes with the codebook's own arrays.
CodebookFields field_values(HtdqCodebook const& codebook);

// Reads and validates the attributes; returns false and the reason when they are not a codebook.
bool read_fields(nvinfer1::PluginFieldCollection const* fields, HtdqCodebook& codebook,
                 std::string& error);

}  // namespace qvd
