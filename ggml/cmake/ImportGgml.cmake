# Defines zipcache-ggml, ggml and its CPU backend, from the installed wheel or from the source of the same pinned package;
# with ZIPCACHE_CUDA also the target ggml-cuda, with ZIPCACHE_METAL ggml-metal.
# Sets ZIPCACHE_GGML_RPATH: where an installed zipcache_rt module finds the shared libraries ("" if linked statically).
set(ZIPCACHE_GGML_PACKAGE "libggml-python")
set(ZIPCACHE_GGML_PACKAGE_VERSION "0.20.2.post1")
set(ZIPCACHE_GGML_VERSION "0.20.2")
set(ZIPCACHE_GGML_SDIST_SHA256 "e47ff53506342959ffb3ce15380b82828fea10ec5f208f9ef6915895f1a7a176")
set(ZIPCACHE_GGML_SDIST "" CACHE FILEPATH "A local copy of the package's sdist, instead of downloading it with pip")
set(ZIPCACHE_GGML_PLATFORM "" CACHE STRING "With ZIPCACHE_GGML=wheel: pip's name of the machine that is built for, if not this one")
option(ZIPCACHE_GGML_SHARED "With ZIPCACHE_GGML=source: link ggml as shared libraries" OFF)

if(ZIPCACHE_CUDA)  # the module and the CUDA library that it loads share one ggml
  set(ZIPCACHE_GGML_SHARED ON)
endif()
if(ZIPCACHE_GGML STREQUAL "wheel")
  include(${CMAKE_CURRENT_LIST_DIR}/GgmlWheel.cmake)
elseif(ZIPCACHE_GGML STREQUAL "source")
  include(${CMAKE_CURRENT_LIST_DIR}/GgmlSource.cmake)
else()
  message(FATAL_ERROR "ZIPCACHE_GGML is '${ZIPCACHE_GGML}'; accepted: wheel, source")
endif()
