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
add_subdirectory("${ggml_source_dir}/ggml" "${CMAKE_BINARY_DIR}/ggml-build" EXCLUDE_FROM_ALL)
if(NOT TARGET ggml::ggml)
  add_library(ggml::ggml ALIAS ggml)
endif()
set(ZIPCACHE_GGML_RPATH "")
