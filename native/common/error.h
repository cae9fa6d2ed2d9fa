#pragma once
#include <stdexcept>
#include <string>

namespace zipcache {

// What went wrong, as the caller sees it. Each kind becomes one Python class and one C status code.
enum class ErrorKind {
    file,      // cannot be opened, read or written; not a GGUF file; damaged
    model,     // a well-formed file whose contents this runtime cannot run
    context,   // the context is full, or a request does not fit into it
    argument,  // an argument is out of its range
    cancelled  // another thread, or the caller's progress callback, stopped the work
};

class Error : public std::runtime_error {
  public:
    Error(ErrorKind kind, const std::string & message) : std::runtime_error(message), kind_(kind) {}

    ErrorKind kind() const { return kind_; }

  private:
    ErrorKind kind_;
};

struct FileError : Error {
    explicit FileError(const std::string & message) : Error(ErrorKind::file, message) {}
};

struct ModelError : Error {
    explicit ModelError(const std::string & message) : Error(ErrorKind::model, message) {}
};

struct ContextError : Error {
    explicit ContextError(const std::string & message) : Error(ErrorKind::context, message) {}
};

struct ArgumentError : Error {
    explicit ArgumentError(const std::string & message) : Error(ErrorKind::argument, message) {}
};

struct Cancelled : Error {
    explicit Cancelled(const std::string & message) : Error(ErrorKind::cancelled, message) {}
};

}  // namespace zipcache
