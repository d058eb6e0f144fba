// The HTDQ kernel's launcher: CUDA's runtime and nothing else.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "htdq/table.h"

namespace qvd {

enum class HtdqType : int32_t { kFloat32, kFloat16, kBFloat16 };

// How the values are looked up; the results are the same. kSearch: each by a search. kLookup: in a
// table of all numbers that every block makes first; for 16-bit types in 16-byte aligned buffers on
// devices with 130 KB of shared memory per block, cudaErrorNotSupported elsewhere. kFastest: by
// kLookup where that works and the values are many enough to pay for the tables.
enum class HtdqMethod : int32_t { kFastest, kSearch, kLookup };

// Enqueues y[i] = level of x[i] for i < count, on the current device.
//
// Inputs are widened to float32, compared there, and the level is rounded to the type (to nearest,
// ties to even). x and y may be the same buffer; 16-byte aligned ones are read 16 bytes at a time.
// The table travels with the launch, so nothing is allocated, copied or kept, and the call can be
// captured in a graph. Returns the launch's own error and leaves those of others where they are.
cudaError_t htdq_launch(HtdqTable const& table, HtdqType type, void const* x, void* y,
                        int64_t count, cudaStream_t stream,
                        HtdqMethod method = HtdqMethod::kFastest) noexcept;

}  // namespace qvd
