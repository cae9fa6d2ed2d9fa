# Sets ZIPCACHE_METAL_LIBRARY: a C++ file that holds our Metal kernels (native/metal/library.h), as source and, where
# Metal's compiler is at hand (it comes with Xcode, not with its command line tools), compiled.
get_filename_component(kernels "${CMAKE_CURRENT_LIST_DIR}/../src" ABSOLUTE)
set(flatten "${CMAKE_CURRENT_LIST_DIR}/flatten_metal.py")
file(GLOB_RECURSE sources CONFIGURE_DEPENDS "${kernels}/*.metal")
file(GLOB_RECURSE headers CONFIGURE_DEPENDS "${kernels}/*.h")
set(text "${CMAKE_CURRENT_BINARY_DIR}/zipcache.metal")
set(compiled "${CMAKE_CURRENT_BINARY_DIR}/zipcache.metallib")
set(ZIPCACHE_METAL_LIBRARY "${CMAKE_CURRENT_BINARY_DIR}/zipcache_metal_library.cpp")

execute_process(COMMAND xcrun -sdk macosx -f metal RESULT_VARIABLE no_compiler OUTPUT_QUIET ERROR_QUIET)
set(with_compiled)
set(needs)
if(no_compiler)
  message(STATUS "No Metal compiler here: our kernels are compiled when a model is first opened")
else()
  add_custom_command(OUTPUT "${compiled}"
    COMMAND ${Python_EXECUTABLE} "${flatten}" "${text}" -I "${kernels}" --sources ${sources}
    COMMAND xcrun -sdk macosx metal -std=metal3.0 -mmacosx-version-min=13.0 -O2 -fno-fast-math -o "${compiled}" "${text}"
    DEPENDS ${sources} ${headers} "${flatten}" VERBATIM)
  set(with_compiled --library "${compiled}")
  set(needs "${compiled}")
endif()
add_custom_command(OUTPUT "${ZIPCACHE_METAL_LIBRARY}"
  COMMAND ${Python_EXECUTABLE} "${flatten}" "${ZIPCACHE_METAL_LIBRARY}" -I "${kernels}" --cpp ${with_compiled} --sources ${sources}
  DEPENDS ${sources} ${headers} ${needs} "${flatten}" VERBATIM)
