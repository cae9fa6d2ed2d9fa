# The whole ggml tree inside the package's sdist: downloaded, checked, unpacked into the build tree, built for this
# machine. Needed for CUDA, Metal, AVX-512 and AMX.
set(ggml_source_dir "${CMAKE_BINARY_DIR}/ggml-source")
if(NOT EXISTS "${ggml_source_dir}/ggml/CMakeLists.txt")
  set(ggml_sdist "${ZIPCACHE_GGML_SDIST}")
  if(NOT ggml_sdist)
    execute_process(
      COMMAND ${Python_EXECUTABLE} -m pip download --quiet --no-deps --no-binary ${ZIPCACHE_GGML_PACKAGE}
              --dest "${CMAKE_BINARY_DIR}/ggml-sdist" "${ZIPCACHE_GGML_PACKAGE}==${ZIPCACHE_GGML_PACKAGE_VERSION}"
      RESULT_VARIABLE ggml_download_failed)
    file(GLOB ggml_sdist "${CMAKE_BINARY_DIR}/ggml-sdist/*.tar.gz")
    if(ggml_download_failed OR NOT ggml_sdist)
      message(FATAL_ERROR "pip could not download the source of ${ZIPCACHE_GGML_PACKAGE}; "
                          "download it elsewhere and pass -DZIPCACHE_GGML_SDIST=FILE")
    endif()
  endif()
  file(SHA256 "${ggml_sdist}" ggml_sha256)
  if(NOT ggml_sha256 STREQUAL ZIPCACHE_GGML_SDIST_SHA256)
    message(FATAL_ERROR "${ggml_sdist} has the SHA-256 ${ggml_sha256}; accepted: ${ZIPCACHE_GGML_SDIST_SHA256}")
  endif()
  file(ARCHIVE_EXTRACT INPUT "${ggml_sdist}" DESTINATION "${CMAKE_BINARY_DIR}/ggml-unpacked")
  file(GLOB ggml_unpacked "${CMAKE_BINARY_DIR}/ggml-unpacked/*")
  file(RENAME "${ggml_unpacked}" "${ggml_source_dir}")
endif()

set(BUILD_SHARED_LIBS ${ZIPCACHE_GGML_SHARED})
if(NOT CMAKE_CROSSCOMPILING)
  set(GGML_NATIVE ON CACHE BOOL "Use all instructions of this machine")
endif()
set(GGML_OPENMP OFF CACHE BOOL "ggml's own thread pool is used")
set(GGML_BUILD_TESTS OFF CACHE BOOL "")
set(GGML_BUILD_EXAMPLES OFF CACHE BOOL "")
set(GGML_CCACHE OFF CACHE BOOL "")
set(GGML_CUDA ${ZIPCACHE_CUDA})
set(GGML_CUDA_GRAPHS OFF CACHE BOOL "Whole steps are recorded, not ggml's pieces of them")
set(GGML_METAL ${ZIPCACHE_METAL})
set(GGML_METAL_EMBED_LIBRARY ON)  # its kernels are a part of the module, as ours are
set(GGML_BLAS OFF CACHE BOOL "Only ggml's CPU and GPU backends are used")
set(GGML_CUDA_NCCL OFF CACHE BOOL "A model runs on one GPU")
# its shared libraries use each other's private functions
set(CMAKE_CXX_VISIBILITY_PRESET default)
add_subdirectory("${ggml_source_dir}/ggml" "${CMAKE_BINARY_DIR}/ggml-build" EXCLUDE_FROM_ALL)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(ZIPCACHE_GGML_PRIVATE_INCLUDE "${ggml_source_dir}/ggml/src")

# not the target ggml: its registry links every backend, CUDA's too, which must not be needed before it is asked for
add_library(zipcache-ggml INTERFACE)
target_link_libraries(zipcache-ggml INTERFACE ggml-base ggml-cpu)
set(ZIPCACHE_GGML_RPATH "")
if(ZIPCACHE_GGML_SHARED)
  set(ZIPCACHE_GGML_RPATH "$ORIGIN")
  set(ggml_libraries ggml-base ggml-cpu)
  if(ZIPCACHE_CUDA)
    list(APPEND ggml_libraries ggml-cuda)
  endif()
  foreach(library ${ggml_libraries})  # a wheel would hold a copy for each symbolic link of a version
    set_property(TARGET ${library} PROPERTY VERSION)
    set_property(TARGET ${library} PROPERTY SOVERSION)
    set_property(TARGET ${library} PROPERTY INSTALL_RPATH "$ORIGIN" ${CUDAToolkit_LIBRARY_DIR})
  endforeach()
  install(TARGETS ${ggml_libraries} LIBRARY DESTINATION . COMPONENT python)
endif()
