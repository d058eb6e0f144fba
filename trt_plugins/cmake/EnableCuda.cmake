# Enables CUDA for all architectures from Turing to Blackwell that this nvcc knows, or stops and
# says what is missing. CMAKE_CUDA_ARCHITECTURES narrows them.

if(NOT CMAKE_CUDA_COMPILER)
  find_program(
    CMAKE_CUDA_COMPILER nvcc
    HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
    PATH_SUFFIXES bin)
endif()
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR " nvcc was not found: install the CUDA toolkit, or set CMAKE_CUDA_COMPILER.")
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known)
  foreach(arch 75 80 86 87 89 90 100 103 110 120 121)
    if(known MATCHES "compute_${arch}\n")
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${arch}-real)
      set(newest ${arch})
    endif()
  endforeach()
  # Intermediate code of the newest lets later GPUs run it too.
  list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest}-virtual)
endif()
message(STATUS "CUDA architectures: ${CMAKE_CUDA_ARCHITECTURES}")

enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
