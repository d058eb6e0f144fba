// Messages to TensorRT's logger.
#pragma once

#include <NvInferRuntime.h>

namespace qvd {

// Where the logger is from now on found; TensorRT gives it to libraries that it loads.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// Logs "qvd::HTDQ: <message><detail>" as an error: with the finder's logger, else with the logger
// of the libnvinfer in this process, else to stderr. Allocates nothing.
void log_error(char const* message, char const* detail = "") noexcept;

}  // namespace qvd
