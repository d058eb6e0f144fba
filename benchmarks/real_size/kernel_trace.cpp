// Sums the time of every CUDA kernel between start and stop, by name, through CUPTI.
//
// TensorRT reports a fused region as one layer; the names of its kernels tell which products are
// INT8. Built and loaded by kernel_trace.py; the functions return 0 or a CUPTI error.

#include <cuda.h>
#include <cupti.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

namespace {

struct Total {
  uint64_t launches = 0;
  uint64_t nanoseconds = 0;
};

constexpr size_t kBufferBytes = size_t{8} << 20;
std::mutex mutex;
std::map<std::string, Total> totals;

void CUPTIAPI request_buffer(uint8_t** buffer, size_t* size, size_t* max_records) {
  *size = kBufferBytes;
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, kBufferBytes));
  *max_records = 0;
}

void CUPTIAPI complete_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  const std::lock_guard<std::mutex> lock(mutex);
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
      const auto* kernel = reinterpret_cast<const CUpti_ActivityKernel9*>(record);
      Total& total = totals[kernel->name == nullptr ? "" : kernel->name];
      total.launches += 1;
      total.nanoseconds += kernel->end - kernel->start;
    }
  }
  std::free(buffer);
}

}  // namespace

extern "C" int kernel_trace_start() {
  totals.clear();
  CUptiResult result = cuptiActivityRegisterCallbacks(request_buffer, complete_buffer);
  if (result == CUPTI_SUCCESS) {
    result = cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  }
  return static_cast<int>(result);
}

// Lines of "launches nanoseconds name".
extern "C" int kernel_trace_stop(const char* path) {
  CUptiResult result = cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  if (result != CUPTI_SUCCESS) {
    return static_cast<int>(result);
  }
  result = cuptiActivityDisable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  const std::lock_guard<std::mutex> lock(mutex);
  std::FILE* file = std::fopen(path, "w");
  if (file == nullptr) {
    return -1;
  }
  for (const auto& [name, total] : totals) {
    std::fprintf(file, "%llu %llu %s\n", static_cast<unsigned long long>(total.launches),
                 static_cast<unsigned long long>(total.nanoseconds), name.c_str());
  }
  std::fclose(file);
  return static_cast<int>(result);
}
