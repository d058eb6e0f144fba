// CUDA's error codes as exceptions, for test programs.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

inline void check(cudaError_t error, char const* what) {
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
    }
}

// Device memory that is freed with its scope.
class DeviceBuffer {
  public:
    explicit DeviceBuffer(size_t bytes) { check(cudaMalloc(&data_, bytes), "cudaMalloc"); }
    DeviceBuffer(DeviceBuffer const&) = delete;
    DeviceBuffer& operator=(DeviceBuffer const&) = delete;
    ~DeviceBuffer() { cudaFree(data_); }

    char* data() const { return static_cast<char*>(data_); }

  private:
    void* data_ = nullptr;
};
