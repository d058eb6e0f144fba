// Stand-ins for what TensorRT's runtime would hand to a plugin.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

// Prints "log SEVERITY: message", so that tests can read it.
class PrintingLogger final : public nvinfer1::ILogger {
  public:
    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override {
        std::printf("log %d: %s\n", static_cast<int>(severity), message);
    }
};

class PrintingLoggerFinder final : public nvinfer1::ILoggerFinder {
  public:
    nvinfer1::ILogger* findLogger() override { return &logger_; }

  private:
    PrintingLogger logger_;
};

// The plugin only passes expressions on, so that these need no value.
class OpaqueExpr final : public nvinfer1::IDimensionExpr {};
class UnusedExprBuilder final : public nvinfer1::IExprBuilder {};

class Library {
  public:
    explicit Library(char const* path) : handle_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
        if (handle_ == nullptr) {
            throw std::runtime_error(dlerror());
        }
    }
    Library(Library const&) = delete;
    Library& operator=(Library const&) = delete;
    ~Library() { dlclose(handle_); }

    template <typename Function>
    Function* function(char const* name) const {
        void* const symbol = dlsym(handle_, name);
        if (symbol == nullptr) {
            throw std::runtime_error(std::string("the library does not export ") + name);
        }
        return reinterpret_cast<Function*>(symbol);
    }

  private:
    void* handle_;
};

// A shape with dimensions that are known only as expressions.
struct OpaqueShape {
    OpaqueShape() : dims{} {
        dims.nbDims = 3;
        for (int i = 0; i < dims.nbDims; ++i) {
            dims.d[i] = &expressions[i];
        }
    }
    bool equals(nvinfer1::DimsExprs const& other) const {
        bool same = other.nbDims == dims.nbDims;
        for (int i = 0; same && i < dims.nbDims; ++i) {
            same = other.d[i] == dims.d[i];
        }
        return same;
    }

    OpaqueExpr expressions[3];
    nvinfer1::DimsExprs dims;
};

inline nvinfer1::PluginTensorDesc tensor_desc(nvinfer1::DataType type,
                                              nvinfer1::TensorFormat format, int count = 1) {
    nvinfer1::PluginTensorDesc desc{};
    desc.dims.nbDims = 2;
    desc.dims.d[0] = 1;
    desc.dims.d[1] = count;
    desc.type = type;
    desc.format = format;
    return desc;
}
