#include "tensorrt/plugin_fields.h"

#include <cstring>

#include "tensorrt/plugin_names.h"

namespace qvd {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

PluginField const* find_field(nvinfer1::PluginFieldCollection const& fields, char const* name) {
    for (int32_t i = 0; i < fields.nbFields; ++i) {
        if (fields.fields[i].name != nullptr && std::strcmp(fields.fields[i].name, name) == 0) {
            return &fields.fields[i];
        }
    }
    return nullptr;
}

bool read_floats(nvinfer1::PluginFieldCollection const& fields, char const* name,
                 FloatAttribute& attribute, std::string& error) {
    PluginField const* const field = find_field(fields, name);
    if (field == nullptr) {
        attribute = {nullptr, 0};
        return true;
    }
    if (field->type != PluginFieldType::kFLOAT32) {
        error = "attribute '" + std::string(name) + "' must be float32, not plugin field type " +
                std::to_string(static_cast<int32_t>(field->type));
        return false;
    }
    attribute = {static_cast<float const*>(field->data), field->length};
    return true;
}

PluginField float_field(char const* name, float const* data, size_t length) {
    return {name, data, PluginFieldType::kFLOAT32, static_cast<int32_t>(length)};
}

}  // namespace

CodebookFields field_names() {
    return {float_field(kLevels, nullptr, 0), float_field(kThresholds, nullptr, 0)};
}

CodebookFields field_values(HtdqCodebook const& codebook) {
    return {float_field(kLevels, codebook.levels.data(), codebook.levels.size()),
            float_field(kThresholds, codebook.thresholds.data(), codebook.thresholds.size())};
}

bool read_fields(nvinfer1::PluginFieldCollection const* fields, HtdqCodebook& codebook,
                 std::string& error) {
    if (fields == nullptr) {
        error = "no attributes were given";
        return false;
    }
    FloatAttribute levels{};
    FloatAttribute thresholds{};
    return read_floats(*fields, kLevels, levels, error) &&
           read_floats(*fields, kThresholds, thresholds, error) &&
           make_codebook(levels, thresholds, codebook, error);
}

}  // namespace qvd
