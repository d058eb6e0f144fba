#include "tensorrt/plugin_log.h"

#include <array>
#include <atomic>
#include <cstdio>

#include "tensorrt/plugin_names.h"
#include "tensorrt/symbols.h"

namespace qvd {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

nvinfer1::ILogger* find_logger() {
    nvinfer1::ILoggerFinder* const finder = logger_finder.load();
    nvinfer1::ILogger* const logger = finder == nullptr ? nullptr : finder->findLogger();
    return logger == nullptr ? find_global_logger() : logger;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
    logger_finder.store(finder);
}

void log_error(char const* message, char const* detail) noexcept {
    std::array<char, 1024> line{};
    std::snprintf(line.data(), line.size(), "%s::%s: %s%s", kPluginNamespace, kPluginName, message,
                  detail);
    try {
        if (nvinfer1::ILogger* const logger = find_logger()) {
            logger->log(nvinfer1::ILogger::Severity::kERROR, line.data());
            return;
        }
    } catch (...) {
        // A finder that throws is as good as none.
    }
    std::fprintf(stderr, "%s\n", line.data());
}

}  // namespace qvd
