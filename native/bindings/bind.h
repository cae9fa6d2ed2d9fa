#pragma once
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "kv/kv_cache.h"
#include "model/weights.h"

namespace zipcache {

// A Python callable as a Progress: takes the interpreter lock for each call, passes on what the callable raises.
using PyProgress = std::optional<pybind11::function>;
Progress progress_of(const PyProgress & callable);

void bind_errors(pybind11::module_ & m);
void bind_inspect(pybind11::module_ & m);
void bind_model(pybind11::module_ & m);
void bind_session(pybind11::module_ & m);
void bind_generate(pybind11::module_ & m);
void bind_bench(pybind11::module_ & m);
void bind_quantize(pybind11::module_ & m);
void bind_scores(pybind11::module_ & m);
void bind_trial(pybind11::module_ & m);

pybind11::dict dict_of(const KvStats & stats);

}  // namespace zipcache
