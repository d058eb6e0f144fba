# Sets TENSORRT_INCLUDE_DIR and TENSORRT_MAJOR, or stops and says what is missing.

foreach(name TENSORRT_ROOT TensorRT_ROOT)
  foreach(value "${${name}}" "$ENV{${name}}")
    if(value)
      list(APPEND tensorrt_roots "${value}")
    endif()
  endforeach()
endforeach()

if(tensorrt_roots)
  find_path(
    TENSORRT_INCLUDE_DIR NvInferVersion.h
    PATHS ${tensorrt_roots}
    PATH_SUFFIXES include
    NO_DEFAULT_PATH)
else()
  find_path(TENSORRT_INCLUDE_DIR NvInferVersion.h PATH_SUFFIXES ${CMAKE_SYSTEM_PROCESSOR}-linux-gnu)
endif()
# A message that starts with a space stays on one line.
if(NOT TENSORRT_INCLUDE_DIR)
  if(tensorrt_roots)
    list(JOIN tensorrt_roots ", " searched)
  else()
    set(searched "the system's include folders")
  endif()
  message(
    FATAL_ERROR
      " TensorRT's headers (NvInferVersion.h) are not in ${searched}: they come with its tar or deb package, not with the Python wheels; set TENSORRT_ROOT to the unpacked tar."
  )
endif()

# Newer headers define NV_TENSORRT_MAJOR through TRT_MAJOR_ENTERPRISE.
foreach(part MAJOR MINOR)
  file(STRINGS ${TENSORRT_INCLUDE_DIR}/NvInferVersion.h lines
       REGEX "^#define (NV_TENSORRT|TRT)_${part}(_ENTERPRISE)? +[0-9]+")
  string(REGEX REPLACE ".*(NV_TENSORRT|TRT)_${part}(_ENTERPRISE)? +([0-9]+).*" "\\3"
                       TENSORRT_${part} "${lines}")
endforeach()
set(TENSORRT_VERSION ${TENSORRT_MAJOR}.${TENSORRT_MINOR})
if(TENSORRT_VERSION VERSION_LESS 8.6)
  message(FATAL_ERROR " TensorRT 8.6 or newer is needed: ${TENSORRT_INCLUDE_DIR} is of "
                      "${TENSORRT_VERSION}.")
endif()
message(STATUS "TensorRT ${TENSORRT_VERSION} headers: ${TENSORRT_INCLUDE_DIR}")
