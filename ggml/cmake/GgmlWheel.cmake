# The prebuilt libraries inside the installed package. Their own RUNPATH is $ORIGIN; ours must lead to them.
if(ZIPCACHE_GGML_PLATFORM)
  set(ggml_package_dir "${CMAKE_BINARY_DIR}/ggml-wheel/libggml")
  if(NOT EXISTS "${ggml_package_dir}")
    execute_process(
      COMMAND ${Python_EXECUTABLE} -m pip install --quiet --no-deps --only-binary ${ZIPCACHE_GGML_PACKAGE}
              --platform ${ZIPCACHE_GGML_PLATFORM} --target "${CMAKE_BINARY_DIR}/ggml-wheel"
              "${ZIPCACHE_GGML_PACKAGE}==${ZIPCACHE_GGML_PACKAGE_VERSION}"
      RESULT_VARIABLE ggml_missing)
    if(ggml_missing)
      message(FATAL_ERROR "pip could not download ${ZIPCACHE_GGML_PACKAGE} for ${ZIPCACHE_GGML_PLATFORM}; "
                          "-DZIPCACHE_GGML=source builds it")
    endif()
  endif()
else()
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import importlib.util as u; print(u.find_spec('libggml').submodule_search_locations[0])"
    OUTPUT_VARIABLE ggml_package_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE ggml_missing)
  if(ggml_missing)
    message(FATAL_ERROR "The Python package ${ZIPCACHE_GGML_PACKAGE} is not installed for ${Python_EXECUTABLE}. "
                        "Install it: pip install ${ZIPCACHE_GGML_PACKAGE}==${ZIPCACHE_GGML_PACKAGE_VERSION}")
  endif()
endif()
file(GLOB ggml_config "${ggml_package_dir}/lib*/cmake/ggml/ggml-config.cmake")
if(NOT ggml_config)
  message(FATAL_ERROR "${ggml_package_dir} holds no CMake package of ggml")
endif()
get_filename_component(ggml_config_dir "${ggml_config}" DIRECTORY)
get_filename_component(ggml_library_dir "${ggml_config_dir}/../.." ABSOLUTE)
get_filename_component(ggml_library_name "${ggml_library_dir}" NAME)

# a kept build directory may remember the package of an earlier, deleted build environment
set(ggml_DIR "${ggml_config_dir}" CACHE PATH "ggml's CMake package" FORCE)
# ggmlConfig.cmake lies beside it and exports a run path of its own that leads nowhere
find_package(ggml CONFIG REQUIRED CONFIGS ggml-config.cmake)
if(NOT GGML_VERSION VERSION_EQUAL ZIPCACHE_GGML_VERSION)
  message(FATAL_ERROR "Found ggml ${GGML_VERSION} in ${ggml_package_dir}; accepted: ${ZIPCACHE_GGML_VERSION}. "
                      "Install it: pip install ${ZIPCACHE_GGML_PACKAGE}==${ZIPCACHE_GGML_PACKAGE_VERSION}")
endif()
add_library(zipcache-ggml INTERFACE)
target_link_libraries(zipcache-ggml INTERFACE ggml::ggml)
if(APPLE)
  set(ZIPCACHE_GGML_RPATH "@loader_path/../libggml/${ggml_library_name}")
else()
  set(ZIPCACHE_GGML_RPATH "$ORIGIN/../libggml/${ggml_library_name}")
endif()
